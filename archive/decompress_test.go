package archive

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

func gz(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zst(t testing.TB, s string, o ...zstd.EOption) string {
	t.Helper()
	w, err := zstd.NewWriter(nil, o...)
	if err != nil {
		t.Fatal(err)
	}
	return string(w.EncodeAll([]byte(s), nil))
}

func TestDecompress(t *testing.T) {
	text := strings.Repeat("some text, ", 100000)
	skippable := "\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
	flipped := []byte(gz(t, text))
	flipped[len(flipped)-6] ^= 1 // in the checksum
	zflipped := []byte(zst(t, text))
	zflipped[len(zflipped)-2] ^= 1
	// A frame of 2^31 bytes with a window of that size (RFC 8878, section 3.1.1.1).
	wide := "\x28\xb5\x2f\xfd\x00" + string([]byte{21 << 3}) + "\x01\x00\x00"
	for _, c := range []struct {
		name, in string
		c        Compression
		want     string
		kind     errdefs.Kind
	}{
		{"empty", "", Plain, "", 0},
		{"plain", text, Plain, text, 0},
		{"short", "x", Plain, "x", 0},
		{"gzip", gz(t, text), Gzip, text, 0},
		{"gzip of nothing", gz(t, ""), Gzip, "", 0},
		{"gzip members", gz(t, text) + gz(t, "") + gz(t, "more"), Gzip, text + "more", 0},
		{"gzip and zeros", gz(t, text) + strings.Repeat("\x00", 300000), Gzip, text, 0},
		{"gzip and noise", gz(t, text) + "noise", Gzip, text, errdefs.Corrupt},
		{"gzip, zeros and noise", gz(t, text) + strings.Repeat("\x00", 300000) + "noise", Gzip, text, errdefs.Corrupt},
		{"gzip, zeros and a member", gz(t, text) + "\x00" + gz(t, "hidden"), Gzip, text, errdefs.Corrupt},
		{"gzip and one byte", gz(t, text) + "\x1f", Gzip, text, errdefs.Corrupt},
		{"gzip cut off", gz(t, text)[:200], Gzip, "?", errdefs.Corrupt},
		{"gzip head cut off", gz(t, text)[:5], Gzip, "", errdefs.Corrupt},
		{"gzip with a wrong checksum", string(flipped), Gzip, text, errdefs.Corrupt},
		{"zstd", zst(t, text), Zstd, text, 0},
		{"zstd frames", zst(t, text) + skippable + zst(t, "more"), Zstd, text + "more", 0},
		{"zstd behind a skippable frame", skippable + zst(t, text), Zstd, text, 0},
		{"zstd and noise", zst(t, text) + "noise", Zstd, text, errdefs.Corrupt},
		{"zstd cut off", zst(t, text)[:20], Zstd, "?", errdefs.Corrupt},
		{"zstd with a wrong checksum", string(zflipped), Zstd, "?", errdefs.Corrupt},
		{"zstd with a large window", wide, Zstd, "", errdefs.Exhausted},
		{"xz", "\xfd7zXZ\x00\x00", Plain, "", errdefs.Unsupported},
		{"bzip2", "BZh91AY", Plain, "", errdefs.Unsupported},
	} {
		for _, slow := range []bool{false, true} {
			in := strings.NewReader(c.in)
			var r io.Reader = in
			if slow {
				r = iotest.OneByteReader(in)
			}
			got, enc, err := decompressAll(r)
			if c.want != "?" && got != c.want || enc != c.c && c.kind != errdefs.Unsupported || (err == nil) != (c.kind == 0) || err != nil && !errdefs.Is(err, c.kind) {
				t.Errorf("%s: got %d bytes, %q, %v (%v); want %d bytes, %q, %v", c.name, len(got), enc, err, errdefs.KindOf(err), len(c.want), c.c, c.kind)
			}
			if err == nil && in.Len() != 0 {
				t.Errorf("%s: %d bytes of the input were not read", c.name, in.Len())
			}
		}
	}
}

func decompressAll(r io.Reader) (string, Compression, error) {
	d, enc, err := Decompress(r)
	if err != nil {
		return "", enc, err
	}
	defer d.Close()
	b, err := io.ReadAll(d)
	return string(b), enc, err
}

func TestDecompressPassesErrorsOfTheReader(t *testing.T) {
	for name, in := range map[string]string{"plain": strings.Repeat("x", 1000), "gzip": gz(t, strings.Repeat("x", 1000)), "zstd": zst(t, strings.Repeat("x", 1000))} {
		for _, n := range []int{len(in), len(in) / 2} {
			_, _, err := decompressAll(io.MultiReader(strings.NewReader(in[:n]), iotest.ErrReader(unix.ECONNRESET)))
			if !errors.Is(err, unix.ECONNRESET) || !errdefs.Is(err, errdefs.Unavailable) {
				t.Errorf("%s, %d bytes: got %v, want ECONNRESET", name, n, err)
			}
		}
	}
}

func TestReadAhead(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 20*chunkSize + 7} {
		b := make([]byte, size)
		rand.New(rand.NewSource(int64(size))).Read(b)
		for _, taps := range []int{0, 1, 2} {
			h, n := sha256.New(), counter(0)
			ra := ReadAhead(iotest.HalfReader(bytes.NewReader(b)), []io.Writer{h, &n}[:taps]...)
			got, err := io.ReadAll(iotest.OneByteReader(io.LimitReader(ra, 100)))
			if err == nil {
				var rest []byte
				rest, err = io.ReadAll(ra)
				got = append(got, rest...)
			}
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes, %d taps: got %d bytes, %v", size, taps, len(got), err)
			}
			if want := sha256.Sum256(b); taps > 0 && !bytes.Equal(h.Sum(nil), want[:]) || taps > 1 && int(n) != size {
				t.Errorf("%d bytes: the taps saw other bytes", size)
			}
			ra.Close()
		}
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func TestReadAheadErrors(t *testing.T) {
	ra := ReadAhead(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(unix.EIO)))
	got, err := io.ReadAll(ra)
	if string(got) != "abc" || !errors.Is(err, unix.EIO) {
		t.Errorf("got %q, %v; want the bytes and then the error", got, err)
	}
	ra.Close()
	tapErr := errors.New("tap")
	r, w := io.Pipe()
	defer r.Close()
	w.CloseWithError(tapErr)
	ra = ReadAhead(strings.NewReader("abc"), w)
	if _, err := io.ReadAll(ra); !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, tapErr) {
		t.Errorf("a tap's error: got %v", err)
	}
	ra.Close()
	// Closed in the middle: the goroutines end, and a Read says so.
	var n counter
	ra = ReadAhead(io.LimitReader(readerFunc(func(p []byte) (int, error) { return len(p), nil }), 1<<40), &n)
	if _, err := ra.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	ra.Close()
	ra.Close()
	if _, err := io.Copy(io.Discard, ra); err == nil {
		t.Error("a Read after Close: want an error")
	}
	ra = ReadAhead(readerFunc(func([]byte) (int, error) { return 0, nil }))
	if _, err := io.ReadAll(ra); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that gives nothing: got %v", err)
	}
	ra.Close()
}

// FuzzDecompress: nothing panics, hangs or takes memory without bound; what is plain comes out as it is.
func FuzzDecompress(f *testing.F) {
	text := strings.Repeat("seed ", 100)
	for _, s := range []string{"", text, gz(f, text), gz(f, text) + gz(f, "x") + "\x00\x00", zst(f, text), zst(f, text)[:20], "\x28\xb5\x2f\xfd", "\x1f\x8b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, enc, err := Decompress(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer d.Close()
		var out bytes.Buffer
		_, err = io.Copy(&out, io.LimitReader(d, 8<<20))
		if enc == Plain && (err != nil || !bytes.Equal(out.Bytes(), b) && len(b) < 8<<20) {
			t.Errorf("plain: got %d bytes, %v; want %d", out.Len(), err, len(b))
		}
	})
}

// FuzzApply: whatever the archive, nothing outside changes, no descriptor stays open, and what is made can be removed.
func FuzzApply(f *testing.F) {
	f.Add(mkTar(f, dir("./", 0o755), dir("a", 0o755), file("a/f", "x"), link("h", "a/f"), sym("s", "../outside"), file("s/secret", "y")))
	f.Add(mkTar(f, file("d/.wh.x", ""), file("d/.wh..wh..opq", ""), node('6', "p", 0, 0), file("d", "replaced")))
	f.Add(mkTar(f, sym("a", "b"), sym("b", "a"), file("a/x", "")))
	long := mkTar(f, file(strings.Repeat("long/", 60)+"n", "x"))
	f.Add(long)
	f.Add(long[:700])
	binary.BigEndian.PutUint32(long[124:], 0x80000001)
	f.Add(long)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		_, _, _ = apply(t, b, Options{Limits: Limits{Entries: 1000, Bytes: 64 << 20}})
	})
}
