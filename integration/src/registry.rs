//! A registry that serves one image from an OCI layout, read-only, over HTTP on the loopback.
//!
//! Enough of the distribution protocol for `podman pull`: manifests by tag and digest, blobs, ranges of
//! blobs. podman asks only registries for parts of a layer, which is how it comes to convert one.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// A running registry; it ends with the process.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
}

struct Layout {
    directory: PathBuf,
    /// Digest and media type of the manifest.
    manifest: (String, String),
}

impl Registry {
    /// Serves the first image of the layout in `directory` on a free port.
    pub fn serve(directory: &Path) -> Result<Self> {
        let index: Value = serde_json::from_slice(&std::fs::read(directory.join("index.json"))?)?;
        let field = |name: &str| -> Result<String> {
            let text = index["manifests"][0][name].as_str();
            Ok(text
                .with_context(|| format!("{name} in {index}"))?
                .to_owned())
        };
        let layout = Arc::new(Layout {
            directory: directory.to_owned(),
            manifest: (field("digest")?, field("mediaType")?),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let layout = Arc::clone(&layout);
                // A client that goes away in the middle is its own business.
                thread::spawn(move || {
                    let _ = layout.answer(&stream);
                });
            }
        });
        Ok(Self { address })
    }

    /// What `podman pull --tls-verify=false` takes.
    pub fn image(&self) -> String {
        format!("docker://{}/image:latest", self.address)
    }
}

impl Layout {
    /// Answers one request.
    fn answer(&self, mut stream: &TcpStream) -> Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let request = lines.next().context("a request")??;
        let mut range = None;
        for line in lines {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(asked) = line.strip_prefix("range: bytes=") {
                range = parse_range(asked);
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next(), words.next().unwrap_or_default());
        let (digest, media_type) = match path.rsplit_once('/') {
            _ if path == "/v2/" => {
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
                )?;
                return Ok(());
            }
            Some((parent, "latest")) if parent.ends_with("/manifests") => {
                (self.manifest.0.as_str(), self.manifest.1.as_str())
            }
            Some((parent, digest)) if parent.ends_with("/manifests") => {
                (digest, self.manifest.1.as_str())
            }
            Some((_, digest)) => (digest, "application/octet-stream"),
            None => ("", ""),
        };
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        let Ok(mut blob) = File::open(self.directory.join("blobs/sha256").join(hex)) else {
            write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )?;
            return Ok(());
        };
        let size = blob.metadata()?.len();
        let (status, first, length) = match range {
            Some((first, last)) => {
                ensure!(first <= last && first < size, "range in {request}");
                ("206 Partial Content", first, last.min(size - 1) + 1 - first)
            }
            None => ("200 OK", 0, size),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\
             Content-Range: bytes {first}-{last}/{size}\r\nDocker-Content-Digest: {digest}\r\n\
             Connection: close\r\n\r\n",
            last = (first + length).saturating_sub(1),
        )?;
        if method == Some("GET") {
            blob.seek(SeekFrom::Start(first))?;
            std::io::copy(&mut blob.take(length), &mut stream)?;
        }
        Ok(())
    }
}

/// One range. Several at once are answered with the whole blob, as the protocol allows.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.trim().split_once('-')?;
    let last = if last.is_empty() {
        u64::MAX - 1
    } else {
        last.parse().ok()?
    };
    Some((first.parse().ok()?, last))
}
