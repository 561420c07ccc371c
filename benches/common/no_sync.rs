//! The real files without their syncs, for benches in which the disk's own time is not the question.

use std::io;
use std::path::Path;
use std::sync::Arc;

use forebay::host::{File, Files, Space};

/// The real files without their syncs: what is left is the program's own work and the page cache.
#[derive(Debug)]
pub struct NoSync(pub Arc<dyn Files>);

#[derive(Debug)]
struct NoSyncFile(Arc<dyn File>);

impl File for NoSyncFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        self.0.append(parts)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

impl Files for NoSync {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(NoSyncFile(self.0.open(path)?)))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(NoSyncFile(self.0.create(path)?)))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.0.space(path)
    }
}
