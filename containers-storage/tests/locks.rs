//! Our locks against the record locks that podman takes, in another process.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::Fixture;
use containers_storage::{EntryName, Interrupt, ReadLock, WriteLock};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

const LOCK: &str = "TEST_LOCK_FILE";

/// A process that takes record locks as podman does; each command gets one line of answer.
struct Podman {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Podman {
    fn start(lock: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_other_process", "--ignored", "--nocapture"])
            .env(LOCK, lock)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Sends "read", "write" or "unlock" and returns whether it was granted.
    fn ask(&mut self, command: &str) -> bool {
        writeln!(self.stdin, "{command}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(
                self.stdout.read_line(&mut line).unwrap(),
                0,
                "the other process ended"
            );
            // The test harness writes lines of its own.
            match line.trim_end().rsplit(' ').next() {
                Some("=granted") => return true,
                Some("=refused") => return false,
                _ => {}
            }
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what [`Podman`] runs.
#[test]
#[ignore = "started by the other tests as a second process"]
fn the_other_process() {
    let Some(path) = std::env::var_os(LOCK) else {
        return;
    };
    let file = File::options().read(true).write(true).open(path).unwrap();
    for command in std::io::stdin().lines() {
        let l_type = match command.unwrap().as_str() {
            "read" => libc::F_RDLCK,
            "write" => libc::F_WRLCK,
            _ => libc::F_UNLCK,
        };
        let flock = libc::flock {
            l_type: l_type as _,
            l_whence: libc::SEEK_SET as _,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        let answer = match fcntl(&file, FcntlArg::F_SETLK(&flock)) {
            Ok(_) => "=granted",
            Err(Errno::EAGAIN | Errno::EACCES) => "=refused",
            Err(e) => panic!("{e}"),
        };
        println!("{answer}");
    }
}

fn lock_file() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("layers.lock");
    fs::write(&path, [1; 64]).unwrap();
    (dir, path)
}

#[test]
fn our_read_lock_keeps_a_record_write_lock_out_and_lets_read_locks_in() {
    let (_dir, path) = lock_file();
    let mut podman = Podman::start(&path);
    let held = ReadLock::acquire(&path).unwrap();
    assert!(!podman.ask("write"));
    assert!(podman.ask("read"));
    podman.ask("unlock");
    // Closing another descriptor of the file does not release the lock, as it would a record lock.
    drop(File::open(&path).unwrap());
    drop(ReadLock::acquire(&path).unwrap());
    assert!(!podman.ask("write"));
    drop(held);
    assert!(podman.ask("write"));
}

#[test]
fn a_record_write_lock_keeps_our_locks_out() {
    let (_dir, path) = lock_file();
    let mut podman = Podman::start(&path);
    assert!(podman.ask("write"));
    assert!(ReadLock::try_acquire(&path).unwrap().is_none());
    assert!(WriteLock::try_acquire(&path).unwrap().is_none());
    assert!(podman.ask("read"));
    assert!(ReadLock::try_acquire(&path).unwrap().is_some());
    assert!(WriteLock::try_acquire(&path).unwrap().is_none());
    podman.ask("unlock");
    assert!(WriteLock::try_acquire(&path).unwrap().is_some());
}

#[test]
fn our_write_lock_keeps_every_other_lock_out() {
    let (_dir, path) = lock_file();
    let mut podman = Podman::start(&path);
    let held = WriteLock::acquire(&path).unwrap();
    assert!(!podman.ask("read"));
    assert!(ReadLock::try_acquire(&path).unwrap().is_none());
    drop(held);
    assert!(podman.ask("read"));
}

#[test]
fn a_waiting_writer_gets_the_lock_when_the_reader_is_done() {
    let (_dir, path) = lock_file();
    let held = ReadLock::acquire(&path).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let writer = std::thread::spawn({
        let path = path.clone();
        move || {
            let lock = WriteLock::acquire(&path).unwrap();
            sender.send("locked").unwrap();
            lock
        }
    });
    assert!(receiver.try_recv().is_err());
    drop(held);
    assert_eq!(receiver.recv().unwrap(), "locked");
    drop(writer.join().unwrap());
}

#[test]
fn a_read_lock_works_on_a_file_that_may_not_be_written() {
    let (_dir, path) = lock_file();
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    let held = ReadLock::acquire(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [1; 64]);
    drop(held);
}

#[test]
fn the_last_write_mark_shows_a_change_and_nothing_else_does() {
    let (_dir, path) = lock_file();
    let mark = ReadLock::acquire(&path).unwrap().last_write().unwrap();
    assert!(
        !ReadLock::acquire(&path)
            .unwrap()
            .changed_since(&mark)
            .unwrap()
    );
    let written = WriteLock::acquire(&path).unwrap().mark_written().unwrap();
    let reader = ReadLock::acquire(&path).unwrap();
    assert!(reader.changed_since(&mark).unwrap());
    assert!(!reader.changed_since(&written).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), 64);
    let pid = fs::read(&path).unwrap()[16..20].to_vec();
    assert_eq!(pid, std::process::id().to_le_bytes());
}

#[test]
fn an_empty_lock_file_means_never_written() {
    let (_dir, path) = lock_file();
    fs::write(&path, "").unwrap();
    let mark = ReadLock::acquire(&path).unwrap().last_write().unwrap();
    assert_eq!(mark, containers_storage::LastWrite::default());
}

#[test]
fn reading_a_layer_never_makes_the_engine_wait() {
    let fixture = Fixture::new();
    let root = fixture.root("main");
    let made = root.layer(None, &[("a", b"a")]);
    root.image(&["localhost/app:latest"], &[&made]);
    let mut podman = Podman::start(&root.path.join("overlay-layers/layers.lock"));
    let layers = root.open().find_image("app").unwrap().layers().unwrap();
    let layer = layers[0].open().unwrap();
    assert!(podman.ask("write"));
    // A file that is there is read although the engine holds the write lock.
    layer.open_file(&EntryName::from("a")).unwrap();
    podman.ask("unlock");
    layer.check_unchanged().unwrap();
    assert!(podman.ask("write"));
}

#[test]
fn waiting_for_a_lock_ends_when_it_is_interrupted_and_leaves_no_lock_behind() {
    let (_dir, path) = lock_file();
    let mut podman = Podman::start(&path);
    assert!(podman.ask("write"));
    let asked = Arc::new(AtomicUsize::new(0));
    let interrupt = {
        let asked = Arc::clone(&asked);
        Interrupt::when(move || asked.fetch_add(1, Ordering::Relaxed) >= 1)
    };
    assert!(
        ReadLock::acquire_unless(&path, &interrupt)
            .unwrap()
            .is_none()
    );
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    podman.ask("unlock");
    // The thread that waited lets the lock go as soon as it has it.
    drop(WriteLock::acquire(&path).unwrap());
    let never = Interrupt::when(|| false);
    assert!(ReadLock::acquire_unless(&path, &never).unwrap().is_some());
}

#[test]
fn a_lock_that_comes_free_is_had_although_it_could_be_interrupted() {
    let (_dir, path) = lock_file();
    let held = WriteLock::acquire(&path).unwrap();
    let interrupt = Interrupt::when(|| false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ReadLock::acquire_unless(&path, &interrupt).unwrap());
        drop(held);
        assert!(waiting.join().unwrap().is_some());
    });
}
