// Package pagecache streams large files through the page cache without filling it.
//
// A pull writes each byte twice, as a blob and unpacked. Left to itself the kernel keeps all of it in memory as dirty
// pages, evicts what the host's programs use for it, and begins to write only when the sync at the end waits for it: the
// disk idles while the processors work, and then the processors idle. A Writer starts the writing out as the file grows
// and gives pages back once they are on the disk; a Reader gives back those that have been read.
//
// Nothing here makes anything durable (sync_file_range(2) writes no metadata): who needs that syncs as before, and
// finds little left to do. All of it is advice: a file system that does not take it costs speed only, so no error is
// reported.
//
// Lifecycle: a value for each file and pass; nothing to close. What it leaves to others: everything else about files.
package pagecache

import "golang.org/x/sys/unix"

const (
	// Step is how much is written out, or given back, at once, in bytes.
	Step = 4 << 20
	// Lag is how far behind the writer or reader pages stay: as long as that, the disk may take to write them.
	Lag = 2 * Step
)

// Writer is a file that is written front to back.
type Writer struct {
	FD int

	started, dropped int64
}

// Wrote says that everything before end has been written. It waits for the disk when that is more than Lag behind, so
// that a slow disk does not turn into dirty memory.
func (w *Writer) Wrote(end int64) {
	for end-w.started >= Step {
		Start(w.FD, w.started, w.started+Step)
		w.started += Step
	}
	for w.started-w.dropped > Lag {
		_ = unix.SyncFileRange(w.FD, w.dropped, Step, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		Drop(w.FD, w.dropped, w.dropped+Step)
		w.dropped += Step
	}
}

// Reader is a file that is read front to back, once.
type Reader struct {
	FD int

	dropped int64
}

// Read says that everything before end has been read. Pages that are not on the disk yet stay.
func (r *Reader) Read(end int64) {
	for end-r.dropped >= Step+Lag {
		Drop(r.FD, r.dropped, r.dropped+Step)
		r.dropped += Step
	}
}

// Start begins to write the dirty pages of a part of a file to the disk, and does not wait.
func Start(fd int, from, to int64) {
	_ = unix.SyncFileRange(fd, from, to-from, unix.SYNC_FILE_RANGE_WRITE)
}

// Drop gives back the pages of a part of a file that are clean; to 0 means up to its end.
func Drop(fd int, from, to int64) {
	_ = unix.Fadvise(fd, from, max(0, to-from), unix.FADV_DONTNEED)
}
