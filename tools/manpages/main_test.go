package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPages(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		if err := write(dir); err != nil {
			t.Fatal(err)
		}
	}
	pages, err := filepath.Glob(filepath.Join(a, "*.1"))
	if err != nil || len(pages) < 40 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, p := range pages {
		page, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := os.ReadFile(filepath.Join(b, filepath.Base(p)))
		if err != nil || string(again) != string(page) {
			t.Errorf("%s: made twice, it differs (%v)", filepath.Base(p), err)
		}
		for _, section := range []string{".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"} {
			if !strings.Contains(string(page), section) {
				t.Errorf("%s lacks %s", filepath.Base(p), section)
			}
		}
	}
	run, err := os.ReadFile(filepath.Join(a, "onggi-run.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`\fB--publish\fP`, "  126  the container's command cannot be executed", ".SH EXAMPLE"} {
		if !strings.Contains(string(run), text) {
			t.Errorf("onggi-run.1 lacks %q", text)
		}
	}
	if _, err := os.Stat(filepath.Join(a, "onggi-container-cleanup.1")); err == nil {
		t.Error("a command that only the monitor calls has a page")
	}
}
