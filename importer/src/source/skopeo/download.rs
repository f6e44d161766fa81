//! A blob as a reader that survives broken connections.

use std::io::{self, Read};
use std::sync::Arc;

use containers_image_proxy::Error;
use containers_image_proxy::oci_spec::image::Digest;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::retry::Attempts;
use super::session::{Failure, Session, Skopeo};
use crate::cancel::Cancel;
use crate::child::LOOK;

/// Bytes that go from the proxies' thread to the reader in one piece, and how many pieces may wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;
/// So many bytes since the last failure make it forgotten.
const PROGRESS: u64 = 1 << 20;

/// What a proxy's task tells.
enum Message {
    /// The next bytes of the blob.
    Bytes(Vec<u8>),
    /// The proxy has no more, or no more to give.
    End(Result<(), Error>),
}

/// A blob that is being fetched.
struct Stream {
    session: Arc<Session>,
    messages: Receiver<Message>,
}

/// Reads a blob of a known size. A download that breaks is begun anew, and goes on where it was.
pub(super) struct Download<'s> {
    skopeo: &'s Skopeo,
    digest: Digest,
    size: u64,
    stream: Option<Stream>,
    attempts: Attempts,
    /// Bytes handed on, in all attempts together.
    read: u64,
    /// Bytes of this attempt that were handed on by earlier ones.
    skip: u64,
    /// Bytes handed on when it last failed.
    failed_at: u64,
    piece: Vec<u8>,
    at: usize,
    done: bool,
}

impl<'s> Download<'s> {
    pub(super) fn new(skopeo: &'s Skopeo, digest: Digest, size: u64) -> Self {
        Self {
            skopeo,
            digest,
            size,
            stream: None,
            attempts: skopeo.attempts(),
            read: 0,
            skip: 0,
            failed_at: 0,
            piece: Vec::new(),
            at: 0,
            done: false,
        }
    }

    /// The next piece; `None` at the end of the blob.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.begin()?,
        };
        loop {
            match stream.messages.blocking_recv() {
                Some(Message::Bytes(mut bytes)) => {
                    let skipped = self.skip.min(bytes.len() as u64);
                    self.skip -= skipped;
                    bytes.drain(..skipped as usize);
                    if !bytes.is_empty() {
                        self.stream = Some(stream);
                        return Ok(Some(bytes));
                    }
                }
                Some(Message::End(Ok(()))) if self.read < self.size => {
                    let digest = &self.digest;
                    let message = format!("the connection ended in the middle of {digest}");
                    return Err(Failure::transient(&message));
                }
                Some(Message::End(Ok(()))) => {
                    self.skopeo.give_back(stream.session);
                    return Ok(None);
                }
                Some(Message::End(Err(error))) => return Err(error.into()),
                None if self.skopeo.cancel().is_cancelled() => return Err(Failure::Cancelled),
                None => return Err(Failure::said("a task of the proxy was lost".to_owned())),
            }
        }
    }

    fn begin(&mut self) -> Result<Stream, Failure> {
        let session = self.skopeo.session()?;
        let (send, messages) = mpsc::channel(PIECES);
        let (proxied, digest, size) = (Arc::clone(&session), self.digest.clone(), self.size);
        let cancel = self.skopeo.cancel().clone();
        self.skopeo.spawn(async move {
            let end = tokio::select! {
                end = fetch(&proxied, &digest, size, &send) => end,
                () = cancelled(&cancel) => return,
                // Nobody reads it any more.
                () = send.closed() => return,
            };
            drop(proxied);
            let _ = send.send(Message::End(end)).await;
        });
        self.skip = self.read;
        Ok(Stream { session, messages })
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = &self.piece[self.at..];
            if !left.is_empty() {
                let count = left.len().min(buffer.len());
                buffer[..count].copy_from_slice(&left[..count]);
                self.at += count;
                return Ok(count);
            }
            if self.done {
                return Ok(0);
            }
            match self.next() {
                Ok(Some(piece)) => {
                    self.read += piece.len() as u64;
                    if self.read - self.failed_at >= PROGRESS {
                        self.attempts.succeeded();
                    }
                    self.piece = piece;
                    self.at = 0;
                }
                Ok(None) => self.done = true,
                Err(failure) => {
                    self.failed_at = self.read;
                    self.attempts
                        .pause(failure, self.skopeo.cancel())
                        .map_err(|failure| failure.into_error(self.skopeo.reference()))
                        .map_err(io::Error::other)?;
                }
            }
        }
    }
}

/// Fetches a blob. The newer protocol leaves checking its digest to us, which the importer does; the
/// older one ends the blob only when it is asked whether it was right.
async fn fetch(
    session: &Session,
    digest: &Digest,
    size: u64,
    send: &Sender<Message>,
) -> Result<(), Error> {
    let Session { proxy, image } = session;
    if proxy.supports_get_raw_blob() {
        let (_, blob, end) = proxy.get_raw_blob(image, digest).await?;
        let (pumped, end) = tokio::join!(pump(blob, send), end);
        end?;
        pumped
    } else {
        let (blob, end) = proxy.get_blob(image, digest, size).await?;
        let (pumped, end) = tokio::join!(pump(blob, send), end);
        end?;
        pumped
    }
}

async fn pump(mut blob: impl AsyncRead + Unpin, send: &Sender<Message>) -> Result<(), Error> {
    loop {
        let mut piece = vec![0; PIECE];
        let count = blob.read(&mut piece).await?;
        piece.truncate(count);
        if count == 0 || send.send(Message::Bytes(piece)).await.is_err() {
            return Ok(());
        }
    }
}

async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(LOOK).await;
    }
}
