//! Files as disks: which can be, and who may have them.

use std::fs;
use std::path::Path;

use devices::virtio::block::{Disk, DiskError};

#[test]
fn a_file_that_is_no_disk_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, read_only| {
        let error = Disk::open(&dir.path().join(name), read_only).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(name) && !text.contains('\n'), "{text}");
        (error, text)
    };
    let (_, text) = refused("missing", true);
    assert!(text.contains("No such file"), "{text}");
    fs::create_dir(dir.path().join("dir")).unwrap();
    assert!(matches!(refused("dir", true).0, DiskError::Kind(_)));
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    assert!(matches!(refused("socket", false).0, DiskError::Kind(_)));
    assert!(matches!(Disk::open(Path::new("/dev/zero"), true), Err(DiskError::Kind(_))));
    for size in [0, 1, 511, 513] {
        fs::write(dir.path().join("size"), vec![0; size]).unwrap();
        let (error, text) = refused("size", false);
        assert!(matches!(error, DiskError::Size { size: s, .. } if s == size as u64));
        assert!(text.contains("truncate -s %512"), "{text}");
    }
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(512 * 7).unwrap();
    let path = file.path();
    let in_use = |read_only| {
        let error = Disk::open(path, read_only).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        assert!(matches!(error, DiskError::InUse(_)));
    };
    let writer = Disk::open(path, false).unwrap();
    assert_eq!((writer.sectors(), writer.is_read_only()), (7, false));
    in_use(false);
    in_use(true);
    drop(writer);
    let readers = [(); 2].map(|()| Disk::open(path, true).unwrap());
    in_use(false);
    drop(readers);
    Disk::open(path, false).unwrap();
}
