//! Whether podman, as it is configured on this host, can use a layout without harm.

use containers_storage::StorageConf;

use crate::{
    Layout,
    error::{Error, Result},
};

/// Checks podman's configuration against a layout.
///
/// Refuses [`Layout::Blob`] where podman would use its native diff: it reads what a container changed
/// from the overlay's upper directory, where a changed mode is an empty stub and a renamed directory is
/// empty, and commits that without a word. `metacopy=on` makes podman compare the mounted trees instead.
pub fn check_host(conf: &StorageConf, layout: Layout) -> Result<()> {
    if let Some(driver) = &conf.driver
        && driver != "overlay"
    {
        return Err(Error::OtherDriver {
            conf: conf.source.to_string(),
            driver: driver.clone(),
        });
    }
    if layout == Layout::Mounted {
        return Ok(());
    }
    let overlay = conf.overlay_options();
    if let Some(program) = &overlay.mount_program {
        return Err(Error::MountProgram {
            conf: conf.source.to_string(),
            program: program.clone(),
        });
    }
    if overlay.naive_diff().is_none() {
        return Err(Error::NativeDiff {
            conf: conf.source.to_string(),
            line: mountopt_line(&overlay.mountopt),
        });
    }
    Ok(())
}

/// The `mountopt` line that makes the layout `blob` safe and keeps the options there are.
fn mountopt_line(mountopt: &str) -> String {
    let others: Vec<&str> = mountopt
        .split(',')
        .map(str::trim)
        .filter(|option| {
            !option.is_empty()
                && !option.starts_with("metacopy=")
                && !option.starts_with("redirect_dir=")
        })
        .collect();
    let mut options = if others.is_empty() {
        vec!["nodev"]
    } else {
        others
    };
    options.push("metacopy=on");
    format!("mountopt = \"{}\"", options.join(","))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use containers_storage::Environment;

    use super::*;

    fn conf(text: &str) -> StorageConf {
        StorageConf::parse(
            text,
            Path::new("/etc/storage.conf"),
            &Environment::default(),
        )
        .unwrap()
    }

    #[test]
    fn blob_is_refused_with_the_line_to_add_where_podman_would_use_native_diff() {
        for (text, line) in [
            ("", "mountopt = \"nodev,metacopy=on\""),
            (
                "[storage.options.overlay]\nmountopt = \"nodev,fsync=0\"\n",
                "mountopt = \"nodev,fsync=0,metacopy=on\"",
            ),
            (
                "[storage.options.overlay]\nmountopt = \"metacopy=off\"\n",
                "mountopt = \"nodev,metacopy=on\"",
            ),
        ] {
            match check_host(&conf(text), Layout::Blob) {
                Err(Error::NativeDiff { line: found, .. }) => assert_eq!(found, line),
                other => panic!("{text}: {other:?}"),
            }
            check_host(&conf(text), Layout::Mounted).unwrap();
        }
    }

    #[test]
    fn blob_is_allowed_where_podman_compares_trees() {
        for text in [
            "[storage.options.overlay]\nmountopt = \"nodev,metacopy=on\"\n",
            "[storage.options.overlay]\nuse_composefs = \"true\"\n",
        ] {
            check_host(&conf(text), Layout::Blob).unwrap();
        }
    }

    #[test]
    fn the_storage_conf_we_ship_is_right_for_both_layouts_and_has_the_view() {
        let conf = conf(include_str!("../../contrib/containers-storage.conf"));
        for layout in [Layout::Blob, Layout::Mounted] {
            check_host(&conf, layout).unwrap();
        }
        assert_eq!(
            conf.additional_image_stores,
            [Path::new("/var/lib/composefs-store/composefs-store/podman")]
        );
    }

    #[test]
    fn mount_programs_and_other_drivers_are_refused() {
        let program = "[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n";
        assert!(matches!(
            check_host(&conf(program), Layout::Blob),
            Err(Error::MountProgram { .. })
        ));
        check_host(&conf(program), Layout::Mounted).unwrap();
        for layout in [Layout::Blob, Layout::Mounted] {
            assert!(matches!(
                check_host(&conf("[storage]\ndriver = \"vfs\"\n"), layout),
                Err(Error::OtherDriver { .. })
            ));
        }
    }
}
