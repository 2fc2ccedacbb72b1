// Package erofs writes EROFS images: read-only file systems in one file, which the kernel mounts from that file
// (Linux 6.12) or by a loop device.
//
// The format is the kernel's (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h), of which this package writes
// the oldest part: blocks of 4 KiB, uncompressed, no feature that a reader has to know (feature_incompat is 0). Inodes
// are of the extended kind (owners of 32 bits, a time of its own for each), the end of a file stands beside its inode
// where that fits in a block. It is tested on Linux 6.18.
//
// An image is written in one pass, while the files come: the field meta_blkaddr is 0, so that an inode may stand in
// any block, and one of a file is written with the file. What remains in memory is the names and, for each inode,
// where it is. Directories are written by Close, and the superblock last: a file whose Close did not return nil is no
// file system. The same calls in the same order give the same bytes.
//
// Lifecycle of an image: NewWriter -> (Put | Link)* -> Close. The file is the caller's: it syncs, closes and, after
// an error, removes it. What it leaves to others: archives and what they may contain (package archive), mounting
// (package mount). The store keeps layers as directories (doc/decisions/23-directories-before-erofs.md): no command
// uses this package yet.
package erofs
