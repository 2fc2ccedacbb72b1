package launch

import (
	"encoding/json"
	"io"
	"os"
	"path"
	"strconv"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// maxSpec bounds config.json: the largest that engines write are some hundred kilobytes.
const maxSpec = 16 << 20

// LoadSpec reads config.json of a bundle.
func LoadSpec(bundle string) (*runspec.Spec, error) {
	name := path.Join(bundle, "config.json")
	b, err := readBounded(name, maxSpec)
	if os.IsNotExist(err) {
		return nil, &errdefs.Error{
			Op: "read", What: name, Kind: errdefs.NotFound, Why: "the bundle has no config.json",
			Fix: "make one with: onggi-runtime spec --bundle " + bundle,
		}
	}
	if err != nil {
		return nil, err
	}
	s, err := decodeSpec(b)
	if err != nil {
		return nil, &errdefs.Error{Op: "read", What: name, Kind: errdefs.InvalidArgument, Err: err}
	}
	return s, nil
}

// LoadProcess reads a process section from a file (exec --process).
func LoadProcess(name string) (*runspec.Process, error) {
	b, err := readBounded(name, maxSpec)
	if err != nil {
		return nil, err
	}
	p, err := decodeProcess(b)
	if err != nil {
		return nil, &errdefs.Error{Op: "read", What: name, Kind: errdefs.InvalidArgument, Err: err}
	}
	return p, nil
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return readAll(f, limit)
}

// LoadResources reads linux.resources from an open file, a pipe perhaps (update --resources).
func LoadResources(f *os.File) (*runspec.LinuxResources, error) {
	b, err := readAll(f, maxSpec)
	if err != nil {
		return nil, err
	}
	r := &runspec.LinuxResources{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, &errdefs.Error{Op: "read the resources from", What: f.Name(), Kind: errdefs.InvalidArgument, Err: err}
	}
	return r, nil
}

// readAll reads to the end, or to more than limit, which is an error.
func readAll(f *os.File, limit int64) ([]byte, error) {
	size := int64(32 << 10)
	if st, err := f.Stat(); err == nil && st.Size() > 0 {
		size = st.Size() + 512
	}
	if size > limit {
		size = limit
	}
	b := make([]byte, 0, size)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if int64(len(b)) > limit {
			return nil, &errdefs.Error{Op: "read", What: f.Name(), Kind: errdefs.Exhausted, Why: "it is larger than " + sizeOf(limit)}
		}
	}
}

// sizeOf is a bound as people write it.
func sizeOf(n int64) string {
	if n >= 1<<20 {
		return strconv.FormatInt(n>>20, 10) + " MiB"
	}
	return strconv.FormatInt(n>>10, 10) + " KiB"
}
