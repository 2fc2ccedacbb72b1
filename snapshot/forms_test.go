package snapshot

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestLayersAreSpread: where the file system knows the attribute, ingest/ has it, and the layers do not.
func TestLayersAreSpread(t *testing.T) {
	s, err := Open(t.TempDir() + "/s")
	if err != nil {
		t.Fatal(err)
	}
	b := layerTar(t, "d/", "d/f=x")
	l, err := s.Unpack(t.Context(), digest.FromBytes(b), bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil || fs.Type != unix.EXT4_SUPER_MAGIC {
		t.Skip("not on ext4")
	}
	for path, want := range map[string]bool{s.path(ingestDir): true, s.path(layerPath(l.DiffID)): false, s.path(layerPath(l.DiffID), "fs", "d"): false} {
		d, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.IoctlGetInt(int(d.Fd()), unix.FS_IOC_GETFLAGS)
		_ = d.Close()
		if got := flags&topDirectory != 0; err != nil || got != want {
			t.Errorf("%s: T is %v, %v; want %v", path, got, err, want)
		}
	}
}

func TestProbe(t *testing.T) {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Skip(err)
	}
	f := Probe()
	for name, has := range map[string]bool{"overlay": f.Writable == "overlay", "erofs": f.EROFS != "none"} {
		if loaded := strings.Contains(string(b), "\t"+name+"\n"); loaded && !has {
			t.Errorf("%s is loaded, and Probe says %+v", name, f)
		}
	}
	if f.Layers != "directories" || !strings.HasPrefix(f.String(), "directories under ") {
		t.Errorf("%+v: %s", f, f)
	}
	for release, want := range map[string]bool{"6.12.0": true, "6.12-rc1": true, "6.11.9": false, "7.0": true, "5.15.0-x": false, "6.18.44-fc": true, "": false, "6": false, "x.y": false} {
		if got := since(release, 6, 12); got != want {
			t.Errorf("since(%q) = %v, want %v", release, got, want)
		}
	}
}
