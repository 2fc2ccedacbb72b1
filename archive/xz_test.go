package archive

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
)

// xzOf compresses with xz-utils.
func xzOf(t testing.TB, data []byte, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("xz"); err != nil {
		t.Skip("xz is not installed")
	}
	c := exec.Command("xz", append([]string{"-c", "-q"}, args...)...)
	c.Stdin = bytes.NewReader(data)
	out, err := c.Output()
	if err != nil {
		t.Fatalf("xz %v: %v", args, err)
	}
	return out
}

// words is text that repeats itself near and far, with noise in between.
func words(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < n {
		switch r.IntN(4) {
		case 0:
			for range 1 + r.IntN(40) {
				b.WriteByte(byte(r.Uint32()))
			}
		case 1:
			b.WriteString(strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(600)))
		default:
			if b.Len() > 10 {
				at := r.IntN(b.Len())
				b.Write(bytes.Clone(b.Bytes()[at:min(b.Len(), at+r.IntN(300))]))
			}
			b.WriteString("onggi ")
		}
	}
	return b.Bytes()[:n]
}

func TestXZ(t *testing.T) {
	big, noise := words(1<<20), make([]byte, 200_000)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for _, c := range []struct {
		name string
		data []byte
		args string
	}{
		{"nothing", nil, ""},
		{"a byte", []byte("x"), ""},
		{"zeros", make([]byte, 1<<20), ""},
		{"noise", noise, ""},
		{"text", big, ""},
		{"fast", big, "-0"},
		{"slow", big, "-9e"},
		{"small dictionary", big, "--lzma2=dict=4KiB"},
		{"dictionary of 100 KiB", big, "--lzma2=dict=100KiB"},
		{"other contexts", big, "--lzma2=lc=0,lp=4,pb=0"},
		{"and others", big, "--lzma2=lc=4,lp=0,pb=4"},
		{"crc32", big, "--check=crc32"},
		{"sha256", big, "--check=sha256"},
		{"no check", big, "--check=none"},
		{"blocks", big, "--block-size=100000"},
		{"threads", big, "-T2 --block-size=500000"},
	} {
		packed := xzOf(t, c.data, strings.Fields(c.args)...)
		got, err := io.ReadAll(newXZ(bytes.NewReader(packed)))
		if err != nil || !bytes.Equal(got, c.data) {
			t.Errorf("%s: %d bytes, want %d: %v", c.name, len(got), len(c.data), err)
		}
	}
	// Streams one after the other, with padding.
	two := append(append(xzOf(t, []byte("one ")), 0, 0, 0, 0), xzOf(t, []byte("two"))...)
	if got, err := io.ReadAll(newXZ(bytes.NewReader(two))); err != nil || string(got) != "one two" {
		t.Errorf("two streams: %q, %v", got, err)
	}
}

// TestXZDamage: whatever is cut off or changed is found.
func TestXZDamage(t *testing.T) {
	data := words(5_000)
	packed := xzOf(t, data, "--block-size=2000")
	for i := range packed {
		if _, err := io.ReadAll(newXZ(bytes.NewReader(packed[:i]))); !errdefs.Is(err, errdefs.Corrupt) {
			t.Fatalf("cut at %d of %d: %v", i, len(packed), err)
		}
		bad := bytes.Clone(packed)
		bad[i] ^= 0x21
		got, err := io.ReadAll(newXZ(bytes.NewReader(bad)))
		if err == nil {
			t.Fatalf("byte %d of %d changed: %d bytes and no error", i, len(packed), len(got))
		}
		if !errdefs.Is(err, errdefs.Corrupt) && !errdefs.Is(err, errdefs.Unsupported) && !errdefs.Is(err, errdefs.Exhausted) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := io.ReadAll(newXZ(bytes.NewReader(xzOf(t, data, "--x86", "--lzma2")))); !errdefs.Is(err, errdefs.Unsupported) {
		t.Errorf("a filter for machine code: %v", err)
	}
	if _, err := io.ReadAll(newXZ(bytes.NewReader(xzOf(t, data, "--lzma2=dict=512MiB")))); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("a dictionary of 512 MiB: %v", err)
	}
}

// FuzzXZ: no input makes the decoder panic or give more than it reads can hold.
func FuzzXZ(f *testing.F) {
	f.Add(xzOf(f, []byte("hello hello hello"), "--check=crc32"))
	f.Add(xzOf(f, words(3000), "--block-size=1000"))
	f.Add(xzOf(f, make([]byte, 100_000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = io.Copy(io.Discard, io.LimitReader(newXZ(bytes.NewReader(b)), 1<<24))
	})
}
