package cli

import (
	"context"
	"encoding/csv"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
)

// buildCaches reads --cache-from and --cache-to as buildx does: fields in CSV, or the name of an image.
func (a *app) buildCaches(b *buildFlags) (from []build.CacheSource, to []build.CacheTarget, err error) {
	for _, s := range b.cacheFrom {
		c, err := a.cacheFrom(s)
		if err != nil {
			return nil, nil, err
		}
		from = append(from, c)
	}
	for _, s := range b.cacheTo {
		c, err := a.cacheTo(s)
		if err != nil {
			return nil, nil, err
		}
		to = append(to, c)
	}
	return from, to, nil
}

// cacheFields reads the fields; only those that are allowed for the type are there.
func cacheFields(flag, s string, allowed map[string]string) (map[string]string, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil || s == "" {
		return nil, badFlag(flag, s, "it cannot be read", "write type=registry,ref=NAME")
	}
	m := map[string]string{}
	if len(fields) == 1 && !strings.Contains(fields[0], "=") {
		m["type"], m["ref"] = "registry", fields[0]
		return m, nil
	}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return nil, badFlag(flag, s, strconv.Quote(f)+" has no value", "write NAME=VALUE")
		}
		m[strings.ToLower(strings.TrimSpace(k))] = v
	}
	known, ok := allowed[m["type"]]
	if !ok {
		return nil, badFlag(flag, s, "there is no cache of the type "+strconv.Quote(m["type"])+" here", "use "+strings.Join(slices.Sorted(maps.Keys(allowed)), ", "))
	}
	for k := range m {
		if k != "type" && !slices.Contains(strings.Fields(known), k) {
			return nil, badFlag(flag, s, "a cache of the type "+m["type"]+" has no field "+strconv.Quote(k), "it has "+known)
		}
	}
	return m, nil
}

func (a *app) cacheFrom(s string) (build.CacheSource, error) {
	const flag = "--cache-from"
	m, err := cacheFields(flag, s, map[string]string{"registry": "ref", "local": "src tag"})
	if err != nil {
		return build.CacheSource{}, err
	}
	if m["type"] == "local" {
		dir, tag := m["src"], m["tag"]
		if dir == "" {
			return build.CacheSource{}, badFlag(flag, s, "it needs a directory", "write src=DIRECTORY")
		}
		if tag == "" {
			tag = "latest"
		}
		return build.CacheSource{Name: dir, Read: func(ctx context.Context, _ *image.Store) ([]*image.Artifact, error) {
			return image.LayoutArtifacts(ctx, dir, tag)
		}}, nil
	}
	ref, err := reference.Parse(m["ref"])
	if err != nil {
		return build.CacheSource{}, reading(flag, s, err)
	}
	return build.CacheSource{Name: ref.Familiar(), Read: func(ctx context.Context, st *image.Store) ([]*image.Artifact, error) {
		// The client lives as long as the build: layers are fetched when a step wants them.
		return st.RemoteArtifacts(ctx, registry.New(a.registryOptions(nil)), ref)
	}}, nil
}

func (a *app) cacheTo(s string) (t build.CacheTarget, err error) {
	const flag = "--cache-to"
	const more = " mode compression compression-level ignore-error"
	m, err := cacheFields(flag, s, map[string]string{"inline": "", "registry": "ref" + more, "local": "dest tag" + more})
	if err != nil {
		return t, err
	}
	switch mode := m["mode"]; mode {
	case "", "min":
	case "max":
		t.Max = true
	default:
		return t, badFlag(flag, s, "there is no mode "+strconv.Quote(mode), "use min or max")
	}
	if v := m["ignore-error"]; v != "" {
		if t.IgnoreError, err = strconv.ParseBool(v); err != nil {
			return t, badFlag(flag, s, "ignore-error is neither true nor false", "write ignore-error=true")
		}
	}
	if t.Compression.Name = m["compression"]; t.Compression.Name == "uncompressed" {
		t.Compression.Name = "none"
	}
	if v := m["compression-level"]; v != "" {
		if t.Compression.Level, err = strconv.Atoi(v); err != nil {
			return t, badFlag(flag, s, "the level is no number", "for example: compression-level=9")
		}
	}
	if err := t.Compression.Check(); err != nil {
		return t, err
	}
	switch m["type"] {
	case "inline":
		t.Inline, t.Name = true, "the image"
	case "local":
		dir, tag := m["dest"], m["tag"]
		if dir == "" {
			return t, badFlag(flag, s, "it needs a directory", "write dest=DIRECTORY")
		}
		if tag == "" {
			tag = "latest"
		}
		t.Name = dir
		t.Write = func(ctx context.Context, st *image.Store, _ *image.Hold, art *image.Artifact) error {
			return st.SaveArtifact(ctx, dir, tag, art)
		}
	case "registry":
		ref, err := reference.Parse(m["ref"])
		if err != nil {
			return t, reading(flag, s, err)
		}
		if ref.Digest != "" {
			return t, badFlag(flag, s, "a cache cannot be given a digest", "write NAME:TAG")
		}
		t.Name = ref.Familiar()
		t.Write = func(ctx context.Context, st *image.Store, h *image.Hold, art *image.Artifact) error {
			c := registry.New(a.registryOptions(nil))
			defer c.Close()
			return st.PushArtifact(ctx, h, ref, art, c)
		}
	}
	return t, nil
}
