package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// rawLayer is a layer of any entries.
func rawLayer(t testing.TB, entries ...tar.Header) testLayer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		text := ""
		if h.Typeflag == 0 {
			h.Typeflag, text = tar.TypeReg, "content of "+h.Name
			h.Size = int64(len(text))
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1.2e9, 0)
		}
		h.Format = tar.FormatPAX
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	must(t, w.Close())
	l := testLayer{tar: b.Bytes(), diffID: digest.FromBytes(b.Bytes()), blob: b.Bytes()}
	l.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.diffID, Size: int64(b.Len())}
	return l
}

// TestAsContainerd unpacks an image with containerd and with us, and compares what a container of it would see.
func TestAsContainerd(t *testing.T) {
	for _, p := range []string{"containerd", "ctr", "unshare", "tar"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs " + p)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := func(name string, mode int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
	}
	i := imageOf(HostPlatform().Architecture,
		rawLayer(t,
			dir("./", 0o755), dir("a/", 0o750), tar.Header{Name: "a/kept", Mode: 0o640, Uid: 7, Gid: 8}, tar.Header{Name: "a/gone", Mode: 0o644}, tar.Header{Name: "a/changed", Mode: 0o644},
			dir("hidden/", 0o755), tar.Header{Name: "hidden/old", Mode: 0o644}, dir("tree/", 0o755), dir("tree/deep/", 0o700), tar.Header{Name: "tree/deep/f", Mode: 0o600},
			dir("becomes-a-file/", 0o755), tar.Header{Name: "becomes-a-file/x", Mode: 0o644}, tar.Header{Name: "becomes-a-directory", Mode: 0o644},
			tar.Header{Name: "set-id", Mode: 0o6755, Uid: 1000, Gid: 1001}, tar.Header{Name: "capable", Mode: 0o755, PAXRecords: map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "SCHILY.xattr.user.note": "kimchi",
			}},
			tar.Header{Typeflag: tar.TypeLink, Name: "set-id-too", Linkname: "set-id", Mode: 0o6755, Uid: 1000, Gid: 1001},
			tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "../../etc/passwd", Mode: 0o777}, tar.Header{Typeflag: tar.TypeSymlink, Name: "absolute", Linkname: "/tree", Mode: 0o777},
			tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o622}, tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
			tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o660, Devmajor: 8, Devminor: 1, Gid: 6}, tar.Header{Name: "na\xffme", Mode: 0o644}, dir("sticky/", 0o1777)),
		rawLayer(t,
			tar.Header{Name: "a/.wh.gone", Mode: 0o644}, tar.Header{Name: "a/changed", Mode: 0o444, Uid: 3}, dir("hidden/", 0o711), tar.Header{Name: "hidden/.wh..wh..opq", Mode: 0o644},
			tar.Header{Name: "hidden/new", Mode: 0o644}, tar.Header{Name: "becomes-a-file", Mode: 0o755}, dir("becomes-a-directory/", 0o700), tar.Header{Name: "becomes-a-directory/inside", Mode: 0o644},
			tar.Header{Name: "absolute/through-a-link", Mode: 0o644}, tar.Header{Name: ".wh.fifo", Mode: 0o644}),
		rawLayer(t,
			tar.Header{Name: "a/gone", Mode: 0o600}, tar.Header{Name: ".wh.tree", Mode: 0o644}, tar.Header{Typeflag: tar.TypeLink, Name: "a/again", Linkname: "a/gone", Mode: 0o600}),
	)
	s := root(t)
	must(t, load(t, s, ociArchive(i.documents, called(i.desc, "corpus:1"))))
	img, err := s.Get("corpus:1")
	must(t, err)
	tree, err := s.snapshots.Tree(bg, img.DiffIDs)
	must(t, err)
	defer tree.Close()
	flags := []string{"--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=pax", "-cf", "-", "."}
	cmd := exec.Command("tar", append([]string{"-C", "/proc/self/fd/3"}, flags...)...)
	cmd.ExtraFiles = []*os.File{tree}
	ours, err := cmd.Output()
	must(t, err)

	home := t.TempDir()
	config, sock, archive := filepath.Join(home, "config.toml"), filepath.Join(home, "c.sock"), filepath.Join(home, "corpus.tar")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", home+"/root", home+"/state", sock), 0o600))
	must(t, os.WriteFile(archive, ociArchive(i.documents, named(i.desc, annotationContainerd, "docker.io/library/corpus:1")), 0o600))
	daemon := exec.Command("containerd", "--config", config)
	daemon.Stdout, daemon.Stderr = io.Discard, io.Discard
	daemon.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	must(t, daemon.Start())
	defer func() { _ = daemon.Process.Signal(unix.SIGTERM); _ = daemon.Wait() }()
	for n := 0; exec.Command("ctr", "-a", sock, "version").Run() != nil; n++ {
		if n == 100 {
			t.Skip("containerd does not start here")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if out, err := exec.Command("ctr", "-a", sock, "images", "import", archive).CombinedOutput(); err != nil {
		t.Fatalf("ctr import: %v: %s", err, out)
	}
	at := filepath.Join(home, "at")
	must(t, os.Mkdir(at, 0o755))
	cmd = exec.Command("unshare", append([]string{"-m", "--propagation", "private", "sh", "-c", `ctr -a "$1" images mount docker.io/library/corpus:1 "$2" >/dev/null && at=$2 && shift 2 && exec tar -C "$at" "$@"`, "-", sock, at}, flags...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	theirs, err := cmd.Output()
	if err != nil {
		t.Fatalf("ctr images mount: %v: %s", err, said.String())
	}
	got, want := listTar(t, ours), listTar(t, theirs)
	if got != want {
		t.Errorf("we show:\n%s\ncontainerd shows:\n%s", got, want)
	}
	if strings.Count(got, "\n") < 20 {
		t.Errorf("only this was compared:\n%s", got)
	}
}

// listTar says all of an archive but the times of directories, which depend on when something was put into them.
func listTar(t testing.TB, b []byte) string {
	t.Helper()
	var out strings.Builder
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out.String()
		}
		must(t, err)
		sum := sha256.New()
		_, err = io.Copy(sum, r)
		must(t, err)
		for _, k := range []string{"atime", "ctime", "mtime", "path", "linkpath"} {
			delete(h.PAXRecords, k)
		}
		when := h.ModTime.Unix()
		if h.Typeflag == tar.TypeDir {
			when = 0
		}
		fmt.Fprintf(&out, "%q %c %o %d:%d %d %q %d,%d %d %x %q\n", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, when, h.Linkname, h.Devmajor, h.Devminor, h.Size, sum.Sum(nil)[:6], h.PAXRecords)
	}
}
