// Package logfile is the container log "local": bounded, rotated, and whole after a crash.
//
// A file is a row of frames; a frame is what one read of a stream returned (up to 64 KiB, so many lines share one
// header and one time):
//
//	u32 magic+version | u8 stream | u8 flags | u16 reserved | i64 time (ns since 1970) | u32 length |
//	u32 crc32c(header+payload)
//	payload
//	u32 length of the whole frame (for reading backwards)
//
// little endian. A torn last frame (crash, power loss) is recognised by its length or checksum and ignored, and the
// writer truncates it when it opens the file again. When a file would exceed MaxSize it becomes NAME.1, NAME.1 becomes
// NAME.2, and so on; at most MaxFiles stay. Readers see lines: they join frames of one stream and split at newlines;
// bytes that are not text are kept.
//
// Writer and readers are different processes and share no lock: a reader holds the files it has opened, so that a
// rotation takes nothing from under it, and recognises a file by its inode. Damage in the middle of a file (a bad disk)
// costs the damaged frames; reading goes on at the next frame whose checksum is right.
//
// It leaves to others: whose output it is (package monitor), and timestamps or colours for people (the command line).
package logfile
