//! Debian's `docker-registry` on the loopback, with or without TLS and a password.

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::command::ok;
use crate::machine::Machine;
use crate::oci::sha256;
use crate::peers::Peers;

/// The only user of a [`Access::Protected`] registry.
pub const USER: &str = "reader";
/// That user's password.
pub const PASSWORD: &str = "correct horse";

/// Who may use a registry, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, over HTTP.
    Open,
    /// [`USER`] with [`PASSWORD`], over HTTPS, with a certificate that nobody trusts by itself.
    Protected,
}

/// A running registry; it ends when dropped.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Child,
    dir: PathBuf,
    address: String,
    access: Access,
}

impl DockerRegistry {
    /// Starts an empty registry on a free port.
    pub fn start(peers: &Peers, access: Access) -> Result<Self> {
        let dir = peers.scratch_dir("registry")?;
        let at = dir.display();
        let http = match access {
            Access::Open => String::new(),
            Access::Protected => {
                protect(&dir)?;
                format!(
                    ", tls: {{certificate: {at}/certs/ca.crt, key: {at}/key}}}}\n\
                     auth: {{htpasswd: {{realm: test, path: {at}/htpasswd}}"
                )
            }
        };
        let conf = format!(
            "version: 0.1\nlog: {{level: info}}\n\
             storage: {{filesystem: {{rootdirectory: {at}/data}}}}\n\
             http: {{addr: '127.0.0.1:0'{http}}}\n"
        );
        std::fs::write(dir.join("config.yml"), conf)?;
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("access"))?)
            .stderr(Stdio::piped())
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .spawn()
            .context("start docker-registry")?;
        let said = BufReader::new(process.stderr.take().context("its standard error")?);
        let mut messages = String::new();
        let mut lines = said.lines();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                let _ = process.kill();
                bail!("docker-registry did not begin to listen: {messages}");
            };
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address = |c: char| c.is_ascii_digit() || c == '.' || c == ':';
                break rest.split(|c| !address(c)).next().unwrap_or("").to_owned();
            }
            messages += &line;
        };
        // It must not block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self {
            process,
            dir,
            address,
            access,
        })
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The name of an image in it, without transport.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The directory for `--cert-dir`, with the registry's certificate.
    pub fn certs(&self) -> PathBuf {
        self.dir.join("certs")
    }

    /// A file for `--authfile` with the right password, or another one.
    pub fn auth_file(&self, password: &str) -> Result<PathBuf> {
        let file = self.dir.join(format!("auth-{}.json", password.len()));
        let auth = BASE64.encode(format!("{USER}:{password}"));
        let json = json!({ "auths": { &self.address: { "auth": auth } } });
        std::fs::write(&file, serde_json::to_vec(&json)?)?;
        Ok(file)
    }

    /// Copies an image into the registry as `name`, with the machine's skopeo. `from` has a transport.
    pub fn push(&self, machine: &Machine, from: &str, name: &str) -> Result<()> {
        self.copy(machine, from, name, &[])
    }

    /// Copies an index and all its images.
    pub fn push_all(&self, machine: &Machine, from: &str, name: &str) -> Result<()> {
        self.copy(machine, from, name, &["--all"])
    }

    /// Copies with further options of `skopeo copy`.
    pub fn copy(&self, machine: &Machine, from: &str, name: &str, options: &[&str]) -> Result<()> {
        let mut skopeo = machine.command("skopeo");
        skopeo.args(["copy", "--quiet"]).args(options);
        if self.access == Access::Protected {
            skopeo
                .arg("--dest-cert-dir")
                .arg(self.certs())
                .args(["--dest-creds", &format!("{USER}:{PASSWORD}")]);
        } else {
            skopeo.arg("--dest-tls-verify=false");
        }
        ok(skopeo.args([from, &format!("docker://{}", self.image(name))]))?;
        Ok(())
    }

    /// Uploads a blob to an open registry, and describes it.
    pub fn put_blob(&self, name: &str, content: &[u8], media_type: &str) -> Result<Value> {
        let descriptor = describe(content, media_type);
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let uploads = format!("http://{}/v2/{name}/blobs/uploads/", self.address);
        let begun = ok(curl().args(["--request", "POST", "--dump-header", "-", &uploads]))?;
        let headers = begun.text();
        let location = headers
            .lines()
            .find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case("location").then(|| value.trim())
            })
            .with_context(|| format!("no location in {headers}"))?;
        let to = format!("{location}&digest={digest}");
        self.put(&to, content, "application/octet-stream")?;
        Ok(descriptor)
    }

    /// Uploads a manifest or index to an open registry, and describes it. Without a tag it is found by
    /// its digest only.
    pub fn put_manifest(&self, name: &str, tag: Option<&str>, content: &Value) -> Result<Value> {
        let media_type = content["mediaType"].as_str().unwrap_or_default();
        let bytes = serde_json::to_vec(content)?;
        let descriptor = describe(&bytes, media_type);
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let tag = tag.unwrap_or(digest);
        let to = format!("http://{}/v2/{name}/manifests/{tag}", self.address);
        self.put(&to, &bytes, media_type)?;
        Ok(descriptor)
    }

    fn put(&self, to: &str, content: &[u8], media_type: &str) -> Result<()> {
        let file = self.dir.join("upload");
        std::fs::write(&file, content)?;
        ok(curl()
            .args(["--request", "PUT", "--header"])
            .arg(format!("Content-Type: {media_type}"))
            .arg("--data-binary")
            .arg(format!("@{}", file.display()))
            .arg(to))?;
        Ok(())
    }

    /// What was asked of it so far: `GET /v2/…` and the like, each with its status.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let log = std::fs::read_to_string(self.dir.join("access"))?;
        Ok(log.lines().filter_map(Request::parse).collect())
    }

    /// The digests of the blobs that were fetched since the first `before` requests, in order.
    pub fn blobs_fetched(&self, before: usize) -> Result<Vec<String>> {
        Ok(self
            .requests()?
            .into_iter()
            .skip(before)
            .filter(|request| request.method == "GET" && request.status < 300)
            .filter_map(|request| Some(request.path.split_once("/blobs/")?.1.to_owned()))
            .collect())
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A request that a registry has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
}

impl Request {
    /// Reads a line of an access log in Apache's format.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("] \"")?;
        let (request, rest) = rest.split_once("\" ")?;
        let mut words = request.split(' ');
        Some(Self {
            method: words.next()?.to_owned(),
            path: words.next()?.to_owned(),
            status: rest.split(' ').next()?.parse().ok()?,
        })
    }
}

fn curl() -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail"]);
    curl
}

/// The descriptor of a document or blob.
pub fn describe(content: &[u8], media_type: &str) -> Value {
    json!({
        "mediaType": media_type,
        "digest": format!("sha256:{}", sha256(content)),
        "size": content.len(),
    })
}

/// A certificate for the loopback, and a password file.
fn protect(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir.join("certs"))?;
    ok(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-subj", "/CN=test registry", "-days", "3650"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .arg("-keyout")
        .arg(dir.join("key"))
        .arg("-out")
        .arg(dir.join("certs/ca.crt")))?;
    let entry = ok(Command::new("htpasswd").args(["-nbB", USER, PASSWORD]))?;
    std::fs::write(dir.join("htpasswd"), entry.stdout)?;
    Ok(())
}
