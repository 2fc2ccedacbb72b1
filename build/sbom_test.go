package build

import (
	"archive/tar"
	"bytes"
	"os"
	"slices"
	"testing"
)

// TestPackages: each database gives what it lists as installed, and nothing of what only looks like one.
func TestPackages(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name, text string
		mode       int64
	}{
		{"etc/os-release", "NAME=x\nID=\"debian\"\n", 0o644},
		{"var/lib/dpkg/status", "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u8\nDescription: a\n b: c\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n", 0o644},
		{"var/lib/dpkg/status.d/tzdata", "Package: tzdata\nVersion: 2024a\nArchitecture: all\n", 0o644},
		{"var/lib/dpkg/status.d/tzdata.md5sums", "Package: no\n", 0o644},
		{"lib/apk/db/installed", "C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\n\nP:busybox\nV:1.36.1-r5\nA:x86_64\n", 0o644},
		{"app/node_modules/left/package.json", `{"name":"left","version":"1.0.0"}`, 0o644},
		{"app/node_modules/@scope/right/package.json", `{"name":"@scope/right","version":"2.0.0"}`, 0o644},
		{"app/node_modules/left/lib/package.json", `{"name":"inner","version":"9"}`, 0o644},
		{"app/package.json", `{"name":"app","version":"9"}`, 0o644},
		{"app/node_modules/bad/package.json", `{`, 0o644},
		{"usr/bin/self", string(self), 0o755},
		{"usr/bin/script", "#!/bin/sh\n" + string(bytes.Repeat([]byte("#"), 5000)), 0o755},
		{"var/lib/rpm/rpmdb.sqlite", "SQLite", 0o644},
	} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	spool, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	list, unread, err := packages(&b, spool)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	modules := 0
	for _, p := range list {
		if p.kind == "golang" {
			modules++
			continue
		}
		got = append(got, p.purl())
	}
	want := []string{
		"pkg:apk/debian/busybox@1.36.1-r5?arch=x86_64", "pkg:apk/debian/musl@1.2.4-r2?arch=x86_64", "pkg:deb/debian/libc6@2.36-9+deb12u8?arch=amd64",
		"pkg:deb/debian/tzdata@2024a?arch=all", "pkg:npm/%40scope/right@2.0.0", "pkg:npm/left@1.0.0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if modules < 2 || !slices.ContainsFunc(list, func(p pkg) bool { return p.name == "stdlib" && p.version != "" }) {
		t.Errorf("this program tells of %d modules", modules)
	}
	if unread != "/var/lib/rpm/rpmdb.sqlite" {
		t.Errorf("what was not read: %q", unread)
	}
}
