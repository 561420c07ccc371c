//! What a file of a simulated spool holds, however it lies on the disk: for checks and harms that look from outside.
//!
//! Place: `life.rs`, `mishaps.rs` and `promises.rs` look at files through it. A plain file is its bytes; a coded one is opened
//! from them by the real code, on a disk of its own, with the keys that all lives use.

use std::path::Path;
use std::sync::Arc;

use forebay::coding::{Coding, EncryptionKey, KeyRing};
use forebay::host::Files as _;

use crate::fault_files::{FaultFiles, SimClock, sim_host};

/// The keys of every life, in either order.
pub fn keys() -> Vec<EncryptionKey> {
    [[1; 32], [2; 32]].map(EncryptionKey::new).to_vec()
}

/// The content of a file with these bytes.
pub fn content(bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.windows(8).take(65).any(|window| window == b"FBYCODED") {
        return bytes;
    }
    let (files, path) = (FaultFiles::new(), Path::new("/spool/segments/0000000001.seg"));
    files.create_dir_all(Path::new("/spool/segments")).expect("a directory");
    files.plant(path, &bytes);
    let coding = Coding { compress: false, keys: KeyRing::new(keys()) };
    let file = coding.host(&sim_host(&files, &Arc::new(SimClock::new()), 0)).files.open(path).expect("the keys are there");
    let mut content = vec![0; file.len().expect("a length") as usize];
    file.read_exact_at(&mut content, 0).expect("content");
    content
}

/// The content of what a process would read now.
pub fn live(files: &FaultFiles, path: &Path) -> Vec<u8> {
    content(files.contents(path).unwrap_or_default())
}

/// The content of what a power cut that loses all that may be lost leaves.
pub fn durable(files: &FaultFiles, path: &Path) -> Vec<u8> {
    content(files.durable_contents(path).unwrap_or_default())
}
