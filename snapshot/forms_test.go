package snapshot

import (
	"os"
	"strings"
	"testing"
)

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
