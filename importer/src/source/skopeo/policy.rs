//! The signature policy, where skopeo's proxy does not apply it.
//!
//! The proxy applies it from protocol 0.2.6 (skopeo 1.14). With an older one, only a policy that accepts
//! everything is as good as applied; with any other nothing is imported.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The policy that skopeo takes: the user's before the system's.
pub(super) fn default_file() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    home.map(|home| home.join(".config/containers/policy.json"))
        .into_iter()
        .chain([PathBuf::from("/etc/containers/policy.json")])
        .find(|file| file.exists())
}

/// Whether a policy accepts every image. One that cannot be read does not.
pub(super) fn accepts_everything(file: &Path) -> bool {
    std::fs::read(file)
        .ok()
        .and_then(|policy| serde_json::from_slice(&policy).ok())
        .is_some_and(|policy| says_nothing_else(&policy))
}

fn says_nothing_else(policy: &Value) -> bool {
    let anything = |requirements: &Value| {
        requirements.as_array().is_some_and(|requirements| {
            !requirements.is_empty()
                && requirements
                    .iter()
                    .all(|requirement| requirement["type"] == "insecureAcceptAnything")
        })
    };
    let of_transports = match &policy["transports"] {
        Value::Null => true,
        Value::Object(transports) => transports.values().all(|scopes| {
            scopes
                .as_object()
                .is_some_and(|scopes| scopes.values().all(anything))
        }),
        _ => false,
    };
    anything(&policy["default"]) && of_transports
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_policy_that_accepts_everything_needs_not_be_applied() {
        let any = json!([{ "type": "insecureAcceptAnything" }]);
        let signed = json!([{ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/key" }]);
        let reject = json!([{ "type": "reject" }]);
        let daemon = json!({ "docker-daemon": { "": any } });
        for policy in [
            json!({ "default": any }),
            json!({ "default": any, "transports": daemon }),
        ] {
            assert!(says_nothing_else(&policy), "{policy}");
        }
        for policy in [
            json!({}),
            json!({ "default": [] }),
            json!({ "default": reject }),
            json!({ "default": reject, "transports": daemon }),
            json!({ "default": any, "transports": { "docker": { "a.example": signed } } }),
            json!({ "default": any, "transports": [] }),
        ] {
            assert!(!says_nothing_else(&policy), "{policy}");
        }
    }
}
