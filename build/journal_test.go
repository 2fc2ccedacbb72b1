package build

import (
	"strings"
	"testing"
)

// TestMask: no write pattern lets a secret through, and what is no secret comes out as it went in.
func TestMask(t *testing.T) {
	secret := []byte("kimchi-in-the-jar\nsecond line\nab\n")
	text := "one kimchi-in-the-jar two\nab\nsecond line and more\nno end kimchi-in-the-jar"
	want := "one *** two\nab\n*** and more\nno end ***"
	for size := 1; size < len(text); size++ {
		var got strings.Builder
		write, flush := newMask(secret).over(func(b []byte) { got.Write(b) })
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			write([]byte(rest[:n]))
			rest = rest[n:]
		}
		flush()
		if got.String() != want {
			t.Fatalf("in writes of %d bytes: got %q, want %q", size, got.String(), want)
		}
	}
	long := strings.Repeat("x", maxHeld) + string(secret[:17]) + strings.Repeat("y", maxHeld)
	var got strings.Builder
	write, flush := newMask(secret).over(func(b []byte) { got.Write(b) })
	for i := 0; i < len(long); i += 1000 {
		write([]byte(long[i:min(i+1000, len(long))]))
	}
	flush()
	if want := strings.ReplaceAll(long, "kimchi-in-the-jar", "***"); got.String() != want {
		t.Errorf("of a line without an end %d bytes come out, want %d", got.Len(), len(want))
	}
}

// TestWithoutLogin: user and password of an address are not kept.
func TestWithoutLogin(t *testing.T) {
	for in, want := range map[string]string{
		"https://me:pw@host/x@y.git#main": "https://host/x@y.git#main", "https://host": "https://host", "/a/dir@b": "/a/dir@b",
		"git@host:x": "git@host:x", "https://tok@host": "https://host",
	} {
		if got := withoutLogin(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
