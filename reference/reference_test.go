package reference

import (
	"errors"
	"strings"
	"testing"

	oracle "github.com/distribution/reference"
	"github.com/onggi/onggi/errdefs"
	"pgregory.net/rapid"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, full, familiar string }{
		{"debian", "docker.io/library/debian:latest", "debian:latest"},
		{"debian:12", "docker.io/library/debian:12", "debian:12"},
		{"docker.io/debian", "docker.io/library/debian:latest", "debian:latest"},
		{"index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"},
		{"me/app:v1", "docker.io/me/app:v1", "me/app:v1"},
		{"localhost/app", "localhost/app:latest", "localhost/app:latest"},
		{"localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"},
		{"127.0.0.1:5000/a/b__c-d.e:T_1", "127.0.0.1:5000/a/b__c-d.e:T_1", "127.0.0.1:5000/a/b__c-d.e:T_1"},
		{"[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"},
		{"Registry/x", "Registry/x:latest", "Registry/x:latest"},
		{"debian@sha256:" + hex64, "docker.io/library/debian@sha256:" + hex64, "debian@sha256:" + hex64},
		{"debian:12@sha256:" + hex64, "docker.io/library/debian:12@sha256:" + hex64, "debian:12@sha256:" + hex64},
		{"docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"},
		{"docker.io/quay.io/x", "docker.io/quay.io/x:latest", "docker.io/quay.io/x:latest"},
	} {
		r, err := Parse(c.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", c.in, err)
			continue
		}
		if got := r.String(); got != c.full {
			t.Errorf("Parse(%q) = %s, want %s", c.in, got, c.full)
		}
		if got := r.Familiar(); got != c.familiar {
			t.Errorf("Parse(%q).Familiar() = %s, want %s", c.in, got, c.familiar)
		}
	}
}

func TestRefusesWithTheWrongPart(t *testing.T) {
	for _, c := range []struct{ in, why string }{
		{"", "empty"},
		{hex64, "image id"},
		{"Debian", "must be lower case"},
		{"debian:", "tag"},
		{"debian:-x", "begins with -"},
		{"debian:" + strings.Repeat("a", 129), "longer than 128"},
		{"debian@", "digest"},
		{"debian@sha256:abc", "digest"},
		{"debian@md5:0123456789abcdef0123456789abcdef", "digest"},
		{"a//b", "empty component"},
		{"/a", "empty component"},
		{"a/", "empty component"},
		{"a..b/c/d", "empty part"},
		{"a/b..c", "two separators"},
		{"a/b_", "ends with a separator"},
		{"host:port/x", "port that is not a number"},
		{"my_host.org/x", "letters, digits, dots and dashes"},
		{"[::1%eth0]/x", "IPv6"},
		{"a b", "may hold only"},
		{"a/\x00", "may hold only"},
		{strings.Repeat("a", 256), "longer than 255"},
		{strings.Repeat("a", 5000), "longer than 4096"},
	} {
		r, err := Parse(c.in)
		if !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("Parse(%q) = %v, %v; want InvalidArgument with %q", c.in, r, err, c.why)
		}
	}
}

// compare checks Parse against docker's own parser; it returns a complaint or "".
func compare(s string) string {
	got, err := Parse(s)
	named, want := oracle.ParseNormalizedNamed(s)
	switch {
	case want == nil && oracle.Domain(named) == "":
		if err == nil {
			return "a name without a registry was accepted"
		}
		return ""
	case want == nil && err != nil:
		if strings.Contains(s, "@sha384:") || len(s) > maxName {
			return ""
		}
		return "refused, distribution accepts it as " + named.String() + ": " + err.Error()
	case want != nil && err == nil:
		return "accepted as " + got.String() + ", distribution: " + want.Error()
	case want != nil:
		var e *errdefs.Error
		if !errors.As(err, &e) || e.Kind != errdefs.InvalidArgument {
			return "an error of another kind: " + err.Error()
		}
		return ""
	}
	named = oracle.TagNameOnly(named)
	if got.String() != named.String() {
		return "got " + got.String() + ", want " + named.String()
	}
	fam := got.Familiar()
	if fam != oracle.FamiliarString(named) && fam != got.String() {
		return "familiar " + fam + ", want " + oracle.FamiliarString(named)
	}
	if again, err := Parse(fam); err != nil || again != got {
		return "the familiar form " + fam + " reads as " + again.String()
	}
	return ""
}

func TestAgreesWithDistribution(t *testing.T) {
	part := rapid.SampledFrom([]string{
		"a", "Z", "0", "debian", "library", "docker.io", "index.docker.io", "localhost", "my-host", "::1", "[", "]", "[::1]",
		".", "..", "-", "--", "_", "__", "___", "/", ":", ":5000", ":latest", "@", "@sha256:", "@sha256:" + hex64, "sha256:",
		"@sha512:" + hex64 + hex64, hex64, " ", "é", "\x00", "%", strings.Repeat("x", 120), "A1",
	})
	rapid.Check(t, func(t *rapid.T) {
		s := strings.Join(rapid.SliceOfN(part, 0, 9).Draw(t, "parts"), "")
		if c := compare(s); c != "" {
			t.Fatalf("%q: %s", s, c)
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`([a-zA-Z0-9.-]{1,6}(:[0-9]{0,3})?/)?[a-z0-9._/-]{1,12}(:[\w.-]{0,5})?(@sha256:[0-9a-f]{60,66})?`).Draw(t, "name")
		if c := compare(s); c != "" {
			t.Fatalf("%q: %s", s, c)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"debian", "a/b:c@sha256:" + hex64, "[::1]:5000/x", "localhost/x", "A.b/c_d", "a--b/c__d", "x@y:z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if c := compare(s); c != "" {
			t.Fatalf("%q: %s", s, c)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("127.0.0.1:5000/me/app:v1@sha256:" + hex64); err != nil {
			b.Fatal(err)
		}
	}
}
