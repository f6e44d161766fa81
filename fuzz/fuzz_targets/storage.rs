//! containers-storage: configuration, records and tar-splits, as podman, its user or anybody wrote them.
#![no_main]

use std::io::Write as _;
use std::path::Path;

use containers_storage::{
    ContainerRecord, Environment, ImageRecord, LayerRecord, StorageConf, TarSplit, TarSplitEntry,
};
use flate2::{Compression, write::GzEncoder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind % 6 {
        0 => conf(data, 0),
        1 => conf(data, 1000),
        2 => drop(serde_json::from_slice::<Vec<ImageRecord>>(data)),
        3 => {
            drop(serde_json::from_slice::<Vec<LayerRecord>>(data));
            drop(serde_json::from_slice::<Vec<ContainerRecord>>(data));
        }
        4 => tar_split(data),
        _ => {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
            gzip.write_all(data).unwrap();
            tar_split(&gzip.finish().unwrap());
        }
    }
});

/// What the parser makes of a file, it makes of it again.
fn conf(data: &[u8], uid: u32) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let environment = Environment {
        uid,
        ..Environment::default()
    };
    let path = Path::new("/etc/containers/storage.conf");
    let parse = || StorageConf::parse(text, path, &environment).ok();
    let conf = parse();
    assert!(parse() == conf, "made something else of it");
    if let Some(conf) = conf {
        let _ = conf.overlay_options().naive_diff();
    }
}

/// No name leads out of the directory that it is opened in.
fn tar_split(gzip: &[u8]) {
    for entry in TarSplit::new(gzip) {
        let Ok(TarSplitEntry::File { name, .. }) = entry else {
            continue;
        };
        if let Some(path) = name.beneath() {
            assert!(!path.starts_with(b"/") && !path.contains(&0));
            for part in path.split(|&byte| byte == b'/') {
                assert!(!matches!(part, b"" | b"." | b".."));
            }
        }
    }
}
