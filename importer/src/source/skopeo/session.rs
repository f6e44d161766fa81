//! Proxies that have the image open.
//!
//! A proxy answers one request after the other, and with the older protocol the end of a blob is such a
//! request. So each blob in work has a proxy of its own; one that has done its work is kept for the next
//! blob, one that failed is not.
//!
//! The proxies' crate is asynchronous. Its tasks run on one thread of their own, which also is the
//! parent of the processes: when it ends, they are ended ([`Skopeo`] is dropped, or the program dies). Those
//! that have nothing under way are told to end, and clear up after themselves.

use std::fmt;
use std::future::Future;
use std::io;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containers_image_proxy::{Error, ImageProxy, ImageProxyConfig, OpenedImage};
use tokio::runtime::{Builder, Runtime};

use super::policy;
use super::retry::Attempts;
use crate::cancel::Cancel;
use crate::child::LOOK;
use crate::registry::{Problem, RegistryOptions, TlsVerify, complaint};
use crate::source::{Platform, SourceError, SourceOptions};

/// Whether the signature policy decides if an image may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// It does.
    Applied,
    /// It does not: for what is stored and never run.
    NotApplied,
}

/// A proxy with the image open.
pub(super) struct Session {
    pub(super) proxy: ImageProxy,
    pub(super) image: OpenedImage,
}

/// Why something did not work this time.
#[derive(Debug)]
pub(super) enum Failure {
    /// The user does not want it any more.
    Cancelled,
    /// There is no skopeo.
    NoSkopeo,
    /// The proxy does not apply the signature policy.
    NoPolicyApplied {
        /// Its protocol.
        protocol: String,
    },
    /// skopeo or the registry said no.
    Said {
        /// In which words.
        message: String,
        /// What they mean.
        problem: Problem,
    },
}

impl Failure {
    pub(super) fn said(message: String) -> Self {
        // Said by `setpriv`, which is to start it.
        if message.contains("failed to execute skopeo") {
            return Self::NoSkopeo;
        }
        Self::Said {
            problem: Problem::of(&message),
            message,
        }
    }

    pub(super) fn not_run(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoSkopeo,
            _ => Self::said(format!("cannot run skopeo: {error}")),
        }
    }

    pub(super) fn transient(message: &str) -> Self {
        Self::Said {
            message: message.to_owned(),
            problem: Problem::Transient,
        }
    }

    /// The registry answered twice, and in two ways.
    pub(super) fn moved(reference: &str) -> Self {
        Self::transient(&format!("{reference} became another image meanwhile"))
    }

    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Said { problem, .. } if problem.may_pass())
    }

    pub(super) fn into_error(self, image: &str) -> SourceError {
        let image = image.to_owned();
        match self {
            Self::Cancelled => SourceError::Cancelled,
            Self::NoSkopeo => SourceError::NoSkopeo,
            Self::NoPolicyApplied { protocol } => SourceError::NoPolicyApplied { image, protocol },
            Self::Said { message, problem } => SourceError::Skopeo {
                image,
                message,
                problem,
            },
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let may_pass = error.is_retryable();
        let message = match error {
            Error::RequestInitiationFailure { error, .. }
            | Error::RetryableRequestFailure { error, .. } => error.into(),
            Error::SkopeoSpawnError(error) => return Self::not_run(&error),
            // It ended: what it said last tells why.
            Error::Other(message) if message.contains('\n') => complaint(&message),
            other => other.to_string(),
        };
        match Self::said(message) {
            Self::Said { message, problem } if may_pass && problem == Problem::Other => {
                Self::Said {
                    message,
                    problem: Problem::Transient,
                }
            }
            said => said,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::NoSkopeo => f.write_str("there is no skopeo"),
            Self::NoPolicyApplied { .. } => f.write_str("the signature policy is not applied"),
            Self::Said { message, .. } => f.write_str(message),
        }
    }
}

/// An image, and the proxies that have it open.
pub(super) struct Skopeo {
    /// Always there, but when it is dropped.
    runtime: Option<Runtime>,
    reference: String,
    registry: RegistryOptions,
    platform: Option<Platform>,
    policy: Policy,
    cancel: Cancel,
    idle: Mutex<Vec<Arc<Session>>>,
}

/// How long proxies may take to end.
const FAREWELL: Duration = Duration::from_secs(2);

impl Drop for Skopeo {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner);
        let idle = std::mem::take(idle);
        // One that is killed leaves what it has unpacked for itself: all of a daemon's image.
        let (send, ended) = mpsc::sync_channel(1);
        self.spawn(async move {
            for session in idle.into_iter().filter_map(Arc::into_inner) {
                let closed = session.proxy.close_image(&session.image).await;
                let closed = closed.and(session.proxy.finalize().await);
                if let Err(error) = closed {
                    tracing::debug!("a proxy did not end well: {error}");
                }
            }
            let _ = send.try_send(());
        });
        let _ = ended.recv_timeout(FAREWELL);
        // Without waiting for a proxy that waits for a registry.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Skopeo {
    pub(super) fn new(
        reference: &str,
        options: &SourceOptions,
        policy: Policy,
    ) -> Result<Self, SourceError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("skopeo")
            .enable_time()
            .build()
            .map_err(SourceError::Runtime)?;
        Ok(Self {
            runtime: Some(runtime),
            reference: reference.to_owned(),
            registry: options.registry.clone(),
            platform: options.platform.clone(),
            policy,
            cancel: options.cancel.clone(),
            idle: Mutex::default(),
        })
    }

    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    pub(super) fn attempts(&self) -> Attempts {
        Attempts::new(self.registry.retries)
    }

    /// Does the work until it succeeds, cannot, or has failed too often.
    pub(super) fn retrying<T>(
        &self,
        mut work: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, SourceError> {
        let mut attempts = self.attempts();
        loop {
            match work() {
                Ok(value) => return Ok(value),
                Err(failure) => attempts
                    .pause(failure, &self.cancel)
                    .map_err(|failure| failure.into_error(&self.reference))?,
            }
        }
    }

    /// What a download broke with.
    pub(super) fn broken(&self, error: io::Error) -> SourceError {
        match error.downcast::<SourceError>() {
            Ok(error) => error,
            Err(error) => Failure::said(error.to_string()).into_error(&self.reference),
        }
    }

    /// Starts a task on the thread of the proxies.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// Runs a task to its end, or to a cancellation.
    fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Failure> {
        let (send, result) = mpsc::sync_channel(1);
        self.spawn(async move {
            // There is room for one, and nobody to hear it after a cancellation.
            let _ = send.try_send(task.await);
        });
        loop {
            match result.recv_timeout(LOOK) {
                Ok(result) => return Ok(result?),
                Err(RecvTimeoutError::Timeout) if self.cancel.is_cancelled() => {
                    return Err(Failure::Cancelled);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::said("a task of the proxy was lost".to_owned()));
                }
            }
        }
    }

    /// An idle proxy, or a new one.
    pub(super) fn session(&self) -> Result<Arc<Session>, Failure> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(session) = idle {
            return Ok(session);
        }
        let (config, reference) = (self.config(), self.reference.clone());
        let session = self.run(async move {
            let proxy = ImageProxy::new_with_config(config).await?;
            let image = proxy.open_image(&reference).await?;
            Ok(Arc::new(Session { proxy, image }))
        })?;
        self.check_policy(&session)?;
        Ok(session)
    }

    /// Takes back a proxy that has nothing under way.
    pub(super) fn give_back(&self, session: Arc<Session>) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(session);
    }

    /// The digest of the image's manifest, and that manifest or what the proxy made of it.
    pub(super) fn manifest(&self) -> Result<(String, Vec<u8>), Failure> {
        let session = self.session()?;
        let proxied = Arc::clone(&session);
        let manifest =
            self.run(async move { proxied.proxy.fetch_manifest_raw_oci(&proxied.image).await })?;
        self.give_back(session);
        Ok(manifest)
    }

    fn config(&self) -> ImageProxyConfig {
        // Unlike a signal at the end of the parent, `setpriv` needs no unsafe code.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--", "skopeo"]);
        if let Some(policy) = &self.registry.signature_policy {
            command.arg("--policy").arg(policy);
        }
        if let Some(platform) = &self.platform {
            command
                .args(["--override-os", &platform.os])
                .args(["--override-arch", &platform.architecture]);
            if !platform.variant.is_empty() {
                command.args(["--override-variant", &platform.variant]);
            }
        }
        if self.registry.tls_verify == TlsVerify::Required {
            command.arg("--tls-verify=true");
        }
        let mut config = ImageProxyConfig::default();
        config.authfile.clone_from(&self.registry.authfile);
        config
            .certificate_directory
            .clone_from(&self.registry.cert_dir);
        config.insecure_skip_tls_verification = Some(self.registry.tls_verify == TlsVerify::Off);
        config.insecure_policy = Some(self.policy == Policy::NotApplied);
        config.skopeo_cmd = Some(command);
        config
    }

    /// The same for `skopeo inspect`.
    pub(super) fn inspect_arguments(&self) -> Vec<String> {
        let RegistryOptions {
            authfile, cert_dir, ..
        } = &self.registry;
        let mut arguments = Vec::new();
        for (name, file) in [("--authfile", authfile), ("--cert-dir", cert_dir)] {
            if let Some(file) = file {
                arguments.extend([name.to_owned(), file.display().to_string()]);
            }
        }
        arguments.extend(self.registry.tls_verify.argument().map(str::to_owned));
        arguments
    }

    /// A proxy that does not apply the policy is of use only where the policy accepts everything.
    fn check_policy(&self, session: &Session) -> Result<(), Failure> {
        /// The first that applies it.
        const APPLIES: (u64, u64, u64) = (0, 2, 6);
        let protocol = session.proxy.protocol_version();
        if self.policy == Policy::NotApplied
            || (protocol.major, protocol.minor, protocol.patch) >= APPLIES
        {
            return Ok(());
        }
        let file = self
            .registry
            .signature_policy
            .clone()
            .or_else(policy::default_file);
        match file {
            Some(file) if policy::accepts_everything(&file) => Ok(()),
            Some(_) => Err(Failure::NoPolicyApplied {
                protocol: protocol.to_string(),
            }),
            None => Err(Failure::said("no policy.json file found".to_owned())),
        }
    }
}
