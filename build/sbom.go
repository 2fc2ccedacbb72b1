package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/build/frontend"
)

// A bill of materials lists the packages that the databases of a tree tell of: dpkg, apk, npm, and what Go programs say of
// themselves. The format is SPDX 2.3 (spdx.github.io/spdx-spec/v2.3).

const spdxType = "https://spdx.dev/Document"

// Bounds of what is read of a tree that nobody has looked at, in bytes.
const (
	maxDatabase = 64 << 20
	maxProgram  = 512 << 20
	maxPackages = 200_000
)

type pkg struct{ kind, name, version, arch, distro string }

// purl names the package (github.com/package-url/purl-spec).
func (p pkg) purl() string {
	name := url.PathEscape(p.name)
	switch p.kind {
	case "deb", "apk":
		name = cmp(p.distro, map[string]string{"deb": "debian", "apk": "alpine"}[p.kind]) + "/" + name
	case "golang":
		name = p.name
	case "npm":
		name = strings.Replace(p.name, "@", "%40", 1)
	}
	s := "pkg:" + p.kind + "/" + name
	if p.version != "" {
		s += "@" + url.PathEscape(p.version)
	}
	if p.arch != "" {
		s += "?arch=" + url.QueryEscape(p.arch)
	}
	return s
}

type spdx struct {
	SPDXVersion       string         `json:"spdxVersion"`
	DataLicense       string         `json:"dataLicense"`
	SPDXID            string         `json:"SPDXID"`
	Name              string         `json:"name"`
	DocumentNamespace string         `json:"documentNamespace"`
	CreationInfo      map[string]any `json:"creationInfo"`
	Packages          []spdxPackage  `json:"packages"`
	Relationships     []spdxRelation `json:"relationships"`
}

type spdxPackage struct {
	SPDXID           string              `json:"SPDXID"`
	Name             string              `json:"name"`
	VersionInfo      string              `json:"versionInfo,omitempty"`
	DownloadLocation string              `json:"downloadLocation"`
	FilesAnalyzed    bool                `json:"filesAnalyzed"`
	ExternalRefs     []map[string]string `json:"externalRefs,omitempty"`
}

type spdxRelation struct {
	Element string `json:"spdxElementId"`
	Related string `json:"relatedSpdxElement"`
	Type    string `json:"relationshipType"`
}

// bill reads a result's packages.
func (s *session) bill(ctx context.Context, p part) (*spdx, error) {
	view, err := s.view(ctx, p.result)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	go func() {
		tw := tar.NewWriter(pw)
		err := view.Tar(ctx, tw, "")
		if err == nil {
			err = tw.Close()
		}
		pw.CloseWithError(err)
	}()
	f, err := os.CreateTemp(s.tmp, "program-")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, unread, err := packages(pr, f)
	pr.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		return nil, fmt.Errorf("read the packages: %w", err)
	}
	if unread != "" {
		s.o.Progress.Warn(frontend.Warning{Text: "the SBOM does not list the packages of " + unread + ": databases of rpm are not read"})
	}
	return document(list, p.result), nil
}

func document(list []pkg, r *result) *spdx {
	id := r.id()
	d := &spdx{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", Name: "image", DocumentNamespace: "https://onggi.dev/spdx/" + id,
		CreationInfo: map[string]any{"created": r.epoch.UTC().Format(time.RFC3339), "creators": []string{"Tool: onggi"}}, Packages: []spdxPackage{},
	}
	for i, p := range list {
		x := spdxPackage{
			SPDXID: fmt.Sprintf("SPDXRef-Package-%d", i+1), Name: p.name, VersionInfo: p.version, DownloadLocation: "NOASSERTION",
			ExternalRefs: []map[string]string{{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": p.purl()}},
		}
		d.Packages = append(d.Packages, x)
		d.Relationships = append(d.Relationships, spdxRelation{d.SPDXID, x.SPDXID, "DESCRIBES"})
	}
	return d
}

// packages reads a tree's tar. Go programs are copied to spool, which is looked at and emptied again. unread is the path of a
// database that was seen and not read.
func packages(r io.Reader, spool *os.File) (list []pkg, unread string, err error) {
	tr := tar.NewReader(r)
	distro := ""
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, "", err
		}
		if h.Typeflag != tar.TypeReg || len(list) > maxPackages {
			continue
		}
		switch dir, name := path.Split(h.Name); {
		case h.Name == "etc/os-release" || h.Name == "usr/lib/os-release":
			for k, v := range fields(tr, "=") {
				if k == "ID" {
					distro = strings.Trim(v, `"'`)
				}
			}
		case h.Name == "var/lib/dpkg/status", dir == "var/lib/dpkg/status.d/" && !strings.HasSuffix(name, ".md5sums"):
			list = append(list, database(tr, "deb", ": ", "Package", "Version", "Architecture")...)
		case h.Name == "lib/apk/db/installed" || h.Name == "usr/lib/apk/db/installed":
			list = append(list, database(tr, "apk", ":", "P", "V", "A")...)
		case name == "package.json" && npmPackage(dir):
			var m struct{ Name, Version string }
			if json.NewDecoder(io.LimitReader(tr, maxDatabase)).Decode(&m) == nil && m.Name != "" {
				list = append(list, pkg{kind: "npm", name: m.Name, version: m.Version})
			}
		case strings.HasSuffix(dir, "lib/rpm/") && (name == "rpmdb.sqlite" || name == "Packages" || name == "Packages.db"), strings.HasSuffix(dir, "/sysimage/rpm/") && name == "rpmdb.sqlite":
			unread = "/" + h.Name
		case h.Mode&0o111 != 0 && h.Size > 4096 && h.Size <= maxProgram:
			more, err := goProgram(tr, spool)
			if err != nil {
				return nil, "", err
			}
			list = append(list, more...)
		}
	}
	for i := range list {
		list[i].distro = distro
	}
	slices.SortFunc(list, func(a, b pkg) int { return strings.Compare(a.purl(), b.purl()) })
	return slices.Compact(list), unread, nil
}

// npmPackage says whether the directory is one of an installed package: node_modules/NAME/ or node_modules/@SCOPE/NAME/.
func npmPackage(dir string) bool {
	up, _ := path.Split(strings.TrimSuffix(dir, "/"))
	if scope := path.Base(up); strings.HasPrefix(scope, "@") {
		up, _ = path.Split(strings.TrimSuffix(up, "/"))
	}
	return path.Base(up) == "node_modules"
}

// fields reads lines of key, separator, value; an empty line is an empty key.
func fields(r io.Reader, sep string) func(yield func(k, v string) bool) {
	return func(yield func(k, v string) bool) {
		sc := bufio.NewScanner(io.LimitReader(r, maxDatabase))
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			k, v, _ := strings.Cut(sc.Text(), sep)
			if !yield(k, strings.TrimSpace(v)) {
				return
			}
		}
	}
}

// database reads paragraphs of fields: what is not installed, of dpkg's, is left out.
func database(r io.Reader, kind, sep, name, version, arch string) (out []pkg) {
	p, gone := pkg{kind: kind}, false
	flush := func() {
		if p.name != "" && !gone {
			out = append(out, p)
		}
		p, gone = pkg{kind: kind}, false
	}
	for k, v := range fields(r, sep) {
		switch k {
		case "":
			flush()
		case name:
			p.name = v
		case version:
			p.version = v
		case arch:
			p.arch = v
		case "Status":
			gone = !strings.HasSuffix(v, " installed")
		}
	}
	flush()
	return out
}

// goProgram lists the modules of a program, if it is one of Go's.
func goProgram(r io.Reader, spool *os.File) ([]pkg, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil || !bytes.Equal(head, []byte("\x7fELF")) {
		return nil, nil
	}
	if err := spool.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if _, err := io.Copy(spool, io.MultiReader(bytes.NewReader(head), r)); err != nil {
		return nil, err
	}
	bi, err := buildinfo.Read(spool)
	if err != nil {
		return nil, nil // a program of another language
	}
	out := []pkg{{kind: "golang", name: "stdlib", version: strings.TrimPrefix(bi.GoVersion, "go")}}
	if bi.Main.Path != "" {
		out = append(out, pkg{kind: "golang", name: bi.Main.Path, version: bi.Main.Version})
	}
	for _, m := range bi.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		out = append(out, pkg{kind: "golang", name: m.Path, version: m.Version})
	}
	return out, nil
}
