package archive

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestFindWaste(t *testing.T) {
	needRoot(t)
	key := "-----BEGIN PRIVATE KEY-----"
	var trees []*os.File
	for _, layer := range [][]string{
		{"mkdir a", "write a/one 1111", "write a/two 22", "mkdir cache", "write cache/x 333", "write cache/y 4444", "write keep k", "mkdir root", "write root/id_rsa " + key, "write root/id_rsa.pub public", "mkdir d", "write d/f ffffff"},
		{"mkdir a", "write a/one 1111", "chmod a/one 600", "write a/two changed", "white cache", "mkdir root", "white root/id_rsa", "mkdir d", "opaque d", "write d/g g", "white never"},
		{"mkdir a", "white a/one"},
	} {
		dir := t.TempDir()
		build(t, dir, layer...)
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		trees = append(trees, f)
	}
	found, err := FindWaste(context.Background(), trees)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, w := range found {
		fmt.Fprintln(&got, w.Kind, w.Path, w.Layer, w.By, w.Size, w.Files)
	}
	want := `deleted /root/id_rsa 0 1 27 1
secret /root/id_rsa 0 0 27 1
deleted /cache 0 1 7 2
deleted /d 0 1 6 1
copied /a/one 0 1 4 1
deleted /a/one 1 2 4 1
overwritten /a/two 0 1 2 1
`
	g := strings.Split(strings.TrimSpace(got.String()), "\n")
	if a, b := strings.Join(sortedLines(g), "\n"), strings.Join(sortedLines(strings.Split(strings.TrimSpace(want), "\n")), "\n"); a != b {
		t.Errorf("got\n%s\nwant\n%s", a, b)
	}
	if len(found) > 0 && found[0].Size != 27 {
		t.Errorf("the largest is not the first: %+v", found)
	}
}

func sortedLines(s []string) []string {
	slices.Sort(s)
	return s
}
