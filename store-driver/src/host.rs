//! Whether podman, as it is configured on this host, can use a layout without harm.

use containers_storage::StorageConf;

use crate::{
    Enforcement, Layout,
    error::{Error, Result},
    podman_conf::mountopt_line,
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
            line: mountopt_line(&overlay.mountopt, layout, Enforcement::WhereSecure),
        });
    }
    Ok(())
}

/// Checks that podman, as it is configured, has the kernel verify what containers read: in the layout
/// [`Layout::Blob`] it mounts the image, and takes nothing but these options from us.
pub fn check_verified_host(conf: &StorageConf, layout: Layout) -> Result<()> {
    let overlay = conf.overlay_options();
    let has_option = || overlay.has_mount_option("verity=require");
    if layout == Layout::Mounted || has_option() {
        return Ok(());
    }
    Err(Error::NoVerityOption {
        conf: conf.source.to_string(),
        line: mountopt_line(&overlay.mountopt, layout, Enforcement::Required),
    })
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
    fn verified_blobs_are_refused_with_the_line_to_add_where_podman_would_not_verify() {
        for (mountopt, line) in [
            ("", "mountopt = \"nodev,metacopy=on,verity=require\""),
            (
                "nodev,metacopy=on",
                "mountopt = \"nodev,metacopy=on,verity=require\"",
            ),
            (
                "noatime,verity=on,metacopy=on",
                "mountopt = \"noatime,metacopy=on,verity=require\"",
            ),
        ] {
            let conf = conf(&format!(
                "[storage.options.overlay]\nmountopt = \"{mountopt}\"\n"
            ));
            match check_verified_host(&conf, Layout::Blob) {
                Err(Error::NoVerityOption { line: found, .. }) => assert_eq!(found, line),
                other => panic!("{mountopt}: {other:?}"),
            }
            check_verified_host(&conf, Layout::Mounted).unwrap();
        }
    }

    #[test]
    fn the_verified_storage_conf_we_ship_is_right_and_differs_in_nothing_else() {
        let plain = include_str!("../../contrib/containers-storage.conf");
        let verified = include_str!("../../contrib/containers-storage.verified.conf");
        let plain = conf(plain);
        let verified = conf(verified);
        for layout in [Layout::Blob, Layout::Mounted] {
            check_host(&verified, layout).unwrap();
            check_verified_host(&verified, layout).unwrap();
        }
        assert_eq!(
            verified.overlay_options().mountopt,
            "nodev,metacopy=on,verity=require"
        );
        assert_eq!(
            verified.additional_image_stores,
            plain.additional_image_stores
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
