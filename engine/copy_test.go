package engine

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
)

// TestCopyWhileLinksAreExchanged: a container that exchanges a directory for a link all the time has nothing of the host
// copied into it, nor into the host (CVE-2018-15664).
func TestCopyWhileLinksAreExchanged(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.Mkdir(secret, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(secret, "key"), []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	id := h.detached(config("sh", "-c", "cd /tmp; mkdir real; echo mine > real/key; ln -s "+up+secret+" link; ln -s real at; echo x; while :; do ln -sfn link at; ln -sfn real at; done"))
	waitFor(t, "the links", func() bool { return h.logged(id) == "x\n" })
	end := time.Now().Add(400 * time.Millisecond)
	n := 0
	for ; time.Now().Before(end) || n < 10; n++ {
		var b bytes.Buffer
		err := h.CopyFrom(ctx, id, "/tmp/at/key", n%2 == 0, &b)
		if err != nil && !errdefs.Is(err, errdefs.NotFound) {
			t.Fatal(err)
		}
		if bytes.Contains(b.Bytes(), []byte("of the host")) {
			t.Fatal("a file of the host was copied out")
		}
		var a bytes.Buffer
		src := openedDir(t, t.TempDir())
		if err := os.WriteFile(filepath.Join(src.Name(), "new"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := archive.PackTree(ctx, &a, src, "new", "new"); err != nil {
			t.Fatal(err)
		}
		if err := h.CopyTo(ctx, id, "/tmp/at", &a, CopyToOptions{}); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(secret); len(left) != 1 {
			t.Fatalf("a file was copied into the host: %v", left)
		}
	}
	if s, err := h.StatPath(ctx, id, "/tmp/link"); err != nil || s.Name != "link" || s.Link == "" {
		t.Errorf("stat of a link: %+v, %v", s, err)
	}
	if s, err := h.StatPath(ctx, id, "/"); err != nil || !s.Mode.IsDir() {
		t.Errorf("stat of the root: %+v, %v", s, err)
	}
}

func openedDir(t *testing.T, path string) *os.File {
	t.Helper()
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}
