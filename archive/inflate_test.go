package archive

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// ours decodes one raw stream with the inflater, up to limit bytes, and returns what follows it.
func ours(r io.Reader, limit int) (out, rest []byte, err error) {
	f := newInflater(r)
	for len(out) <= limit {
		b, err := f.next()
		if err == io.EOF {
			f.reset()
			for {
				b := f.bytes(1000)
				if len(b) == 0 {
					return out, rest, nil
				}
				rest = append(rest, b...)
				f.skip(len(b))
			}
		}
		if err != nil {
			return out, nil, err
		}
		out = append(out, b...)
	}
	return out, nil, nil
}

// theirs does the same with the standard library.
func theirs(b []byte, limit int) (out, rest []byte, err error) {
	in := bytes.NewReader(b)
	out, err = io.ReadAll(io.LimitReader(flate.NewReader(in), int64(limit)+1))
	return out, b[len(b)-in.Len():], err
}

// samples are texts that exercise literals, short and long matches, runs, and no redundancy at all.
func samples() map[string][]byte {
	r := rand.New(rand.NewSource(1))
	noise := make([]byte, 700<<10)
	r.Read(noise)
	few := make([]byte, 300<<10)
	for i := range few {
		few[i] = "abcd"[r.Intn(4)]
	}
	words := new(bytes.Buffer)
	for words.Len() < 600<<10 {
		fmt.Fprintf(words, "word%d ", r.Intn(1000))
	}
	skewed := make([]byte, 400<<10) // long codes: the second tables
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 6)
	}
	far := append(append(append([]byte{}, noise[:200]...), bytes.Repeat([]byte{0}, 32768-200)...), noise[:200]...) // the greatest distance
	return map[string][]byte{
		"nothing": nil, "a byte": {7}, "noise": noise, "few letters": few, "words": words.Bytes(), "skewed": skewed, "far": far,
		"zeros": make([]byte, 3<<20), "periods": []byte(strings.Repeat("ab", 5000) + strings.Repeat("abc", 5000) + strings.Repeat("abcdefg", 50000)),
		"mixed": append(append(append([]byte{}, noise[:100000]...), words.Bytes()...), few...),
	}
}

func TestInflateRoundTrip(t *testing.T) {
	for name, s := range samples() {
		for _, level := range []int{-2, 0, 1, 5, 6, 9} {
			var b bytes.Buffer
			w, err := flate.NewWriter(&b, level)
			if err != nil {
				t.Fatal(err)
			}
			half := len(s) / 3
			for _, part := range [][]byte{s[:half], s[half:]} { // a flush makes an empty stored block
				if _, err := w.Write(part); err != nil {
					t.Fatal(err)
				}
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			b.WriteString("what follows")
			for rname, r := range map[string]io.Reader{
				"whole": bytes.NewReader(b.Bytes()), "halves": iotest.HalfReader(bytes.NewReader(b.Bytes())),
				"data and EOF": iotest.DataErrReader(bytes.NewReader(b.Bytes())),
			} {
				out, rest, err := ours(r, 1<<30)
				if err != nil || !bytes.Equal(out, s) || string(rest) != "what follows" {
					t.Errorf("%s, level %d, %s: got %d bytes, %d behind, %v; want %d and 12", name, level, rname, len(out), len(rest), err, len(s))
				}
			}
		}
	}
}

// TestInflateCutAndFlipped: what the standard library refuses we refuse, and what it takes we decode to the same bytes.
func TestInflateCutAndFlipped(t *testing.T) {
	r := rand.New(rand.NewSource(2))
	for name, s := range samples() {
		s = s[:min(len(s), 3000)]
		for _, level := range []int{0, 1, 9, flate.HuffmanOnly} {
			var b bytes.Buffer
			w, _ := flate.NewWriter(&b, level)
			_, _ = w.Write(s)
			_ = w.Close()
			whole := b.Bytes()
			for range 12 {
				cut := whole[:r.Intn(len(whole))]
				if _, _, err := ours(bytes.NewReader(cut), 1<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("%s, level %d: cut at %d of %d: got %v", name, level, len(cut), len(whole), err)
				}
				flipped := bytes.Clone(whole)
				flipped[r.Intn(len(flipped))] ^= 1 << r.Intn(8)
				compare(t, flipped)
			}
		}
	}
}

func compare(t *testing.T, b []byte) {
	t.Helper()
	const limit = 4 << 20
	want, wantRest, wantErr := theirs(b, limit)
	got, gotRest, gotErr := ours(bytes.NewReader(b), limit)
	if len(want) > limit && len(got) > limit { // both would go on
		want, got = want[:limit], got[:limit]
		gotRest, wantRest = nil, nil
	}
	if (gotErr == nil) != (wantErr == nil) || wantErr == nil && (!bytes.Equal(got, want) || !bytes.Equal(gotRest, wantRest)) {
		t.Fatalf("%x: got %d bytes, %d behind, %v; want %d, %d, %v", b[:min(len(b), 100)], len(got), len(gotRest), gotErr, len(want), len(wantRest), wantErr)
	}
}

func TestGzipHeaders(t *testing.T) {
	var plain bytes.Buffer
	w := gzip.NewWriter(&plain)
	w.Name, w.Comment, w.Extra, w.ModTime = "name", "comment", bytes.Repeat([]byte("extra"), 10000), time.Unix(1e9, 0)
	_, _ = w.Write([]byte("content"))
	_ = w.Close()
	if got, _, err := decompressAll(bytes.NewReader(plain.Bytes())); got != "content" || err != nil {
		t.Errorf("all fields: got %q, %v", got, err)
	}
	body := gz(t, "content")
	withCRC := []byte(body[:10])
	withCRC[3] = gzHeaderCRC
	sum := crc(withCRC)
	good := string(binary.LittleEndian.AppendUint16(bytes.Clone(withCRC), sum)) + body[10:]
	bad := string(binary.LittleEndian.AppendUint16(bytes.Clone(withCRC), sum+1)) + body[10:]
	reserved := body[:3] + "\x80" + body[4:]
	endless := body[:3] + "\x08" + body[4:10] + strings.Repeat("n", 200<<10)
	for name, c := range map[string]struct {
		in string
		ok bool
	}{
		"header checksum": {good, true}, "wrong header checksum": {bad, false}, "reserved flag": {reserved, false}, "endless name": {endless, false},
		"wrong size": {body[:len(body)-1] + "\x01", false}, "other method": {body[:2] + "\x07" + body[3:], false},
	} {
		if got, _, err := decompressAll(strings.NewReader(c.in)); (err == nil) != c.ok || c.ok && got != "content" {
			t.Errorf("%s: got %q, %v; want ok %v", name, got, err, c.ok)
		}
	}
}

func crc(b []byte) uint16 {
	c := ^uint32(0)
	for _, x := range b { // bit by bit, as RFC 1952 section 8 defines it
		c ^= uint32(x)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xedb88320
			} else {
				c >>= 1
			}
		}
	}
	return uint16(^c)
}

// TestAsGzip packs this test's own binary with gzip(1) and reads it.
func TestAsGzip(t *testing.T) {
	if _, err := exec.LookPath("gzip"); err != nil {
		t.Skip("needs gzip")
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range []string{"-1", "-6", "-9"} {
		cmd := exec.Command("gzip", level, "-c")
		cmd.Stdin = bytes.NewReader(self)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, enc, err := decompressAll(bytes.NewReader(packed)); got != string(self) || enc != Gzip || err != nil {
			t.Errorf("%s: %d bytes, %v; want %d", level, len(got), err, len(self))
		}
	}
}

// FuzzInflate compares with the standard library on any input.
func FuzzInflate(f *testing.F) {
	for _, s := range samples() {
		for _, level := range []int{0, 1, 9, flate.HuffmanOnly} {
			var b bytes.Buffer
			w, _ := flate.NewWriter(&b, level)
			_, _ = w.Write(s[:min(len(s), 2000)])
			_ = w.Close()
			f.Add(b.Bytes())
		}
	}
	f.Add([]byte{3, 0})                // an empty fixed block
	f.Add([]byte{5, 0xe0, 0xff, 0xff}) // a dynamic one that is none
	f.Fuzz(func(t *testing.T, b []byte) { compare(t, b) })
}

func BenchmarkInflate(b *testing.B) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	packed := gz(b, string(self))
	b.SetBytes(int64(len(self)))
	for b.Loop() {
		d, _, err := Decompress(strings.NewReader(packed))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, d); int(n) != len(self) || err != nil {
			b.Fatal(n, err)
		}
	}
}

// TestInflateFlushed reads streams of tiny blocks, each followed by an empty stored one, as programs write that flush
// often. A block begins and ends in bits that were loaded before the input was read further, and the stored one begins
// at a byte that is given back from them.
func TestInflateFlushed(t *testing.T) {
	for seed := range int64(40) {
		r := rand.New(rand.NewSource(seed))
		var z bytes.Buffer
		w, err := flate.NewWriter(&z, 1+int(seed%9))
		if err != nil {
			t.Fatal(err)
		}
		var want []byte
		for z.Len() < 300<<10 {
			p := make([]byte, 1+r.Intn(7))
			for i := range p {
				p[i] = byte(r.Intn(3))
			}
			want = append(want, p...)
			_, _ = w.Write(p)
			_ = w.Flush()
		}
		_ = w.Close()
		f := newInflater(iotest.HalfReader(bytes.NewReader(z.Bytes())))
		var got []byte
		for {
			b, err := f.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("seed %d: after %d bytes: %v", seed, len(got), err)
			}
			got = append(got, b...)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: %d bytes, want %d, or others", seed, len(got), len(want))
		}
	}
}

// TestInflateGivesBackBytesAfterAFill: bits that were loaded before the input buffer moved on belong to bytes that a stored
// block, or the end of a stream, gives back.
func TestInflateGivesBackBytesAfterAFill(t *testing.T) {
	for _, step := range []int{1, 7, 30} {
		var want, packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		for i := 0; packed.Len() < 12*inSize; i++ {
			s := strings.Repeat(fmt.Sprintf("%d-%x ", i, i*i*2654435761), 1+i%step)
			want.WriteString(s)
			if _, err := z.Write([]byte(s)); err != nil {
				t.Fatal(err)
			}
			if err := z.Flush(); err != nil { // an empty stored block
				t.Fatal(err)
			}
			if i%97 == 0 { // another member
				if err := z.Close(); err != nil {
					t.Fatal(err)
				}
				z.Reset(&packed)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		r, _, err := Decompress(iotest.HalfReader(bytes.NewReader(packed.Bytes())))
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := got.ReadFrom(r); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("step %d: other data", step)
		}
	}
}
