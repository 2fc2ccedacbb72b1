package cli

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/term"
)

// buildOutputs reads --output, --push, --load and --annotation into what is done with the result. Without any of them the
// image goes to the store.
func (a *app) buildOutputs(b *buildFlags, names []reference.Reference) ([]build.Output, error) {
	var out []build.Output
	only := false // type=cacheonly
	for _, s := range b.outputs {
		o, keep, err := a.buildOutput(s)
		if err != nil {
			return nil, err
		}
		if !keep {
			only = true
			continue
		}
		out = append(out, o)
	}
	if only && len(out) > 0 {
		return nil, badFlag("--output", "type=cacheonly", "it says that nothing is written, and another output is asked for", "leave one of them out")
	}
	toStore := slices.IndexFunc(out, func(o build.Output) bool { return o.Type == build.ToStore })
	if toStore < 0 && (b.push || b.load || len(out) == 0 && !only) {
		toStore = len(out)
		out = append(out, build.Output{Type: build.ToStore})
	}
	if b.push {
		out[toStore].Push = true
	}
	stdout := 0
	for i := range out {
		o := &out[i]
		if len(o.Names) == 0 {
			o.Names = names
		}
		if o.Push && len(o.Names) == 0 {
			return nil, badFlag("--push", "true", "the image has no name, which says where to push it", "give it one: --tag registry.example.com/app:1")
		}
		if o.Push && o.Compression == nil { // what leaves is compressed; once, before the manifest is made
			o.Compression = &image.Compression{}
		}
		if o.Out != nil {
			if stdout++; stdout > 1 {
				return nil, badFlag("--output", "-", "two outputs cannot both go to standard output", "give one of them a file: dest=FILE")
			}
		}
		if err := annotate(o, b.annotations); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// buildOutput reads one --output, as buildx does: fields in CSV, or a directory, or - for a tar on standard output.
func (a *app) buildOutput(s string) (o build.Output, keep bool, err error) {
	bad := func(why, fix string) (build.Output, bool, error) { return o, false, badFlag("--output", s, why, fix) }
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil || s == "" {
		return bad("it cannot be read", "write a directory, or type=local,dest=DIRECTORY")
	}
	if len(fields) == 1 && !strings.Contains(fields[0], "=") {
		if fields[0] == "-" {
			fields = []string{"type=tar", "dest=-"}
		} else {
			fields = []string{"type=local", "dest=" + fields[0]}
		}
	}
	values := map[string]string{}
	var order []string
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return bad(strconv.Quote(f)+" has no value", "write NAME=VALUE")
		}
		k = strings.TrimSpace(k)
		if !strings.HasPrefix(k, "annotation") {
			k = strings.ToLower(k)
		}
		values[k] = v
		order = append(order, k)
	}
	o.UID, o.GID = uint32(os.Getuid()), uint32(os.Getgid())
	kind := values["type"]
	archive := false
	switch kind {
	case "image", "registry":
		o.Type, o.Push = build.ToStore, kind == "registry"
	case "docker":
		if o.Type, archive = build.ToDocker, true; values["dest"] == "" {
			o.Type, archive = build.ToStore, false // as docker: into its store
		}
	case "oci":
		o.Type, archive = build.ToOCI, true
	case "tar":
		o.Type, archive = build.ToTar, true
	case "local":
		o.Type = build.ToDirectory
	case "cacheonly":
		if len(values) > 1 {
			return bad("type=cacheonly has no other fields", "leave them out")
		}
		return o, false, nil
	case "":
		return bad("it has no type", "write type=local, tar, oci, docker, image or registry")
	default:
		return bad("there is no output of the type "+strconv.Quote(kind), "use local, tar, oci, docker, image, registry or cacheonly")
	}
	isImage := o.Type == build.ToStore || o.Type == build.ToOCI || o.Type == build.ToDocker
	var compression image.Compression
	compressed := archive && isImage // an image that leaves is compressed unless it says otherwise
	for _, k := range order {
		v := values[k]
		truth := func(must ...bool) (bool, error) {
			t, err := strconv.ParseBool(v)
			if err != nil {
				return t, badFlag("--output", s, k+" is neither true nor false", "write "+k+"=true")
			}
			if len(must) > 0 && t != must[0] {
				return t, badFlag("--output", s, k+"="+v+" is not honoured", "leave it out")
			}
			return t, nil
		}
		switch {
		case k == "type":
		case k == "dest" && (archive || o.Type == build.ToDirectory):
			o.Dest = v
		case k == "dest" && kind == "docker" && v == "":
		case k == "name" && isImage:
			for _, n := range strings.Split(v, ",") {
				ref, err := reference.Parse(n)
				if err != nil {
					return o, false, err
				}
				if ref.Digest != "" {
					return bad("an image cannot be given a digest", "write NAME:TAG")
				}
				o.Names = append(o.Names, ref)
			}
		case k == "push" && o.Type == build.ToStore:
			if o.Push, err = truth(); err != nil {
				return o, false, err
			}
		case k == "tar" && kind == "oci":
			t, err := truth()
			if err != nil {
				return o, false, err
			}
			o.Directory = !t
		case k == "compression" && isImage:
			compressed = true
			if compression.Name = v; v == "uncompressed" {
				compression.Name = "none"
			}
			if v == "estargz" {
				return bad("layers in the form estargz are not made here", "use gzip, zstd or uncompressed")
			}
		case k == "compression-level" && isImage:
			compressed = true
			if compression.Level, err = strconv.Atoi(v); err != nil {
				return bad("the level is no number", "for example: compression-level=9")
			}
		case k == "force-compression" && isImage:
			if o.Force, err = truth(); err != nil {
				return o, false, err
			}
			compressed = compressed || o.Force
		case (k == "oci-mediatypes" || k == "unpack" || k == "store") && isImage:
			if _, err = truth(true); err != nil {
				return o, false, err
			}
		case (k == "oci-artifact" || k == "push-by-digest" || k == "registry.insecure" || k == "name-canonical") && isImage:
			if _, err = truth(false); err != nil {
				return o, false, err
			}
		case k == "rewrite-timestamp" && isImage:
			if _, err = truth(); err != nil { // what a build makes has the epoch's time in any case
				return o, false, err
			}
		case strings.HasPrefix(k, "annotation") && isImage:
			if err := annotate(&o, []string{annotationKey(k) + "=" + v}); err != nil {
				return o, false, err
			}
		case k == "platform-split" && !isImage:
			t, err := truth()
			if err != nil {
				return o, false, err
			}
			o.Split = &t
		default:
			return bad("the output "+kind+" has no field "+strconv.Quote(k), "see: onggi build --help")
		}
	}
	if compressed {
		if err := compression.Check(); err != nil {
			return o, false, err
		}
		o.Compression = &compression
	}
	switch {
	case o.Type == build.ToDirectory && (o.Dest == "" || o.Dest == "-"), o.Directory && (o.Dest == "" || o.Dest == "-"):
		return bad("it needs a directory", "write dest=DIRECTORY")
	case archive && !o.Directory && (o.Dest == "" || o.Dest == "-"):
		if term.IsTerminal(int(a.out.Fd())) {
			return bad("an archive is not written to a terminal", "write dest=FILE, or redirect standard output")
		}
		o.Dest, o.Out = "", a.out
	case archive && !o.Directory:
		if err := isDirectory(filepath.Dir(o.Dest)); err != nil {
			return o, false, err
		}
	}
	return o, true, nil
}

// annotationKey turns the field annotation-index.KEY into what --annotation takes: index:KEY.
func annotationKey(field string) string {
	kind, key, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(field, "annotation"), "-"), ".")
	if kind == "" {
		return key
	}
	return kind + ":" + key
}

// annotate reads annotations as buildx does: [manifest|index|manifest-descriptor,...:]KEY=VALUE.
func annotate(o *build.Output, list []string) error {
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		kinds, key, typed := strings.Cut(k, ":")
		if !typed {
			kinds, key = "manifest", k
		}
		if !ok || key == "" {
			return badFlag("--annotation", s, "it has no name or no value", "write NAME=VALUE")
		}
		for _, kind := range strings.Split(kinds, ",") {
			var to *map[string]string
			switch kind {
			case "manifest":
				to = &o.Annotations
			case "index":
				to = &o.IndexAnnotations
			case "manifest-descriptor":
				to = &o.EntryAnnotations
			default:
				return badFlag("--annotation", s, "there is nothing called "+strconv.Quote(kind)+" to annotate", "use manifest, index or manifest-descriptor")
			}
			if *to == nil {
				*to = map[string]string{}
			}
			(*to)[key] = v
		}
	}
	return nil
}

// buildPush brings what was built into its registry.
func (a *app) buildPush(e *engine.Engine) func(context.Context, reference.Reference) error {
	return func(ctx context.Context, ref reference.Reference) error {
		store, err := e.Images()
		if err != nil {
			return err
		}
		r := registry.New(a.registryOptions(nil))
		defer r.Close()
		_, err = store.Push(ctx, ref, image.PushOptions{Registry: r})
		return err
	}
}

// buildResult writes what --iidfile, --metadata-file and --quiet ask for.
func (a *app) buildResult(b *buildFlags, res *build.Result) error {
	// As docker: the id of an image is the digest of its configuration, that of several the index's.
	id := res.Config
	if id == "" && res.Desc != nil {
		id = res.Desc.Digest
	}
	if b.iidfile != "" {
		if err := os.WriteFile(b.iidfile, []byte(id), 0o644); err != nil {
			return err
		}
	}
	if b.metadata != "" {
		m := map[string]any{}
		for k, v := range res.Metadata {
			m[k] = v
		}
		if d := res.Desc; d != nil {
			m["containerimage.descriptor"] = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
			m["containerimage.digest"] = d.Digest
			if res.Config != "" {
				m["containerimage.config.digest"] = res.Config
			}
			var names []string
			for _, n := range res.Names {
				names = append(names, n.String())
			}
			if len(names) > 0 {
				m["image.name"] = strings.Join(names, ",")
			}
		}
		doc, err := json.MarshalIndent(m, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.metadata, doc, 0o644); err != nil {
			return err
		}
	}
	if (b.quiet || b.progress == "quiet") && id != "" && !b.toStdout {
		return a.print(fmt.Sprintln(id))
	}
	return nil
}
