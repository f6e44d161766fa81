//! An HTTP proxy in front of a registry that breaks chosen downloads.

use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// What happens to a download of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection ends after so many bytes of the answer's body.
    Cut(u64),
    /// The connection stays open, but nothing comes after so many bytes of the body.
    Stall(u64),
    /// Another status instead of the answer.
    Status(u16),
}

/// What a TLS connection begins with.
const TLS_HANDSHAKE: u8 = 22;

/// A running proxy; it ends with the process.
#[derive(Debug)]
pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    faults: VecDeque<Fault>,
    /// Downloads of blobs: the digest, and what happened.
    seen: Vec<(String, Fault)>,
    stalled: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultyProxy {
    /// Stands in front of the registry at `host:port`, which speaks HTTP. The first downloads of blobs
    /// meet `faults`, in their order; those that follow are not disturbed.
    pub fn start(registry: &str, faults: &[Fault]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            registry: registry.to_owned(),
            state: Mutex::new(State {
                faults: faults.iter().copied().collect(),
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let proxy = Self {
            address,
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that goes away in the middle is its own business.
                thread::spawn(move || {
                    let _ = shared.serve(&stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(proxy)
    }

    /// The name of an image behind it, without transport.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The downloads of blobs so far, and what happened to each.
    pub fn downloads(&self) -> Vec<(String, Fault)> {
        self.shared.state().seen.clone()
    }

    /// Waits until so many downloads are stalled, with clients that wait for more.
    pub fn wait_for_stalled(&self, stalled: usize) {
        let mut state = self.shared.state();
        while state.stalled != stalled {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    /// Answers the one request that a connection has.
    fn serve(&self, client: &TcpStream) -> Result<()> {
        // Clients try TLS first, and would wait for a long time for an answer to that.
        let mut first = [0];
        client.peek(&mut first)?;
        if first[0] == TLS_HANDSHAKE {
            return Ok(());
        }
        let mut lines = BufReader::new(client).lines();
        let request = lines.next().context("a request")??;
        let mut head = format!("{request}\r\n");
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            if !line.to_ascii_lowercase().starts_with("connection:") {
                head.extend([&line, "\r\n"]);
            }
        }
        head += "Connection: close\r\n\r\n";
        let fault = match request
            .strip_prefix("GET ")
            .and_then(|rest| rest.split_once("/blobs/"))
        {
            Some((_, rest)) => {
                let digest = rest.split([' ', '?']).next().unwrap_or_default().to_owned();
                let mut state = self.state();
                let fault = state.faults.pop_front().unwrap_or(Fault::None);
                state.seen.push((digest, fault));
                fault
            }
            None => Fault::None,
        };
        let mut client = client;
        if let Fault::Status(status) = fault {
            write!(
                client,
                "HTTP/1.1 {status} Injected\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )?;
            return Ok(());
        }
        let mut upstream = TcpStream::connect(&self.registry)?;
        upstream.write_all(head.as_bytes())?;
        let mut answer = BufReader::new(upstream);
        // The head goes through whole; what is counted is the body.
        loop {
            let mut line = Vec::new();
            answer.read_until(b'\n', &mut line)?;
            client.write_all(&line)?;
            if matches!(line.as_slice(), b"\r\n" | b"") {
                break;
            }
        }
        match fault {
            Fault::Cut(bytes) => {
                io::copy(&mut answer.take(bytes), &mut client)?;
            }
            Fault::Stall(bytes) => {
                io::copy(&mut answer.take(bytes), &mut client)?;
                self.state().stalled += 1;
                self.changed.notify_all();
                // Until the client gives up.
                let _ = io::copy(&mut client, &mut io::sink());
                self.state().stalled -= 1;
                self.changed.notify_all();
            }
            Fault::None | Fault::Status(_) => {
                io::copy(&mut answer, &mut client)?;
            }
        }
        Ok(())
    }
}
