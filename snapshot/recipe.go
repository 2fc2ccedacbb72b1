package snapshot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// WriteTo writes the archive that the layer was unpacked from to w, out of its files and its recipe, and verifies its
// digest at the end: an error of kind Corrupt says that what was written is not the layer. NotFound: there is no such
// layer, or no recipe of it.
func (s *Store) WriteTo(ctx context.Context, diffID digest.Digest, w io.Writer) error {
	if _, err := s.Layer(diffID); err != nil {
		return err
	}
	recipe, err := os.Open(s.path(layerPath(diffID), layerRecipe))
	if errors.Is(err, fs.ErrNotExist) {
		return &errdefs.Error{
			Op: "rebuild the layer", What: string(diffID), Kind: errdefs.NotFound,
			Why: "how its archive looked was not kept", Fix: "pull the image again",
		}
	}
	if err != nil {
		return s.fail("rebuild the layer", string(diffID), err)
	}
	defer recipe.Close()
	dir, err := pathrs.OpenRoot(s.path(layerPath(diffID), "fs"))
	if err != nil {
		return s.fail("rebuild the layer", string(diffID), err)
	}
	defer dir.Close()
	hash := diffID.Algorithm().Hash()
	if err := archive.Rebuild(ctx, dir, recipe, io.MultiWriter(hash, w)); err != nil {
		return s.fail("rebuild the layer", string(diffID), err)
	}
	if got := digest.NewDigest(diffID.Algorithm(), hash); got != diffID {
		return &errdefs.Error{
			Op: "rebuild the layer", What: string(diffID), Kind: errdefs.Corrupt,
			Why: fmt.Sprintf("its files give the digest %s: they are not those that were unpacked", got), Fix: "onggi system check --repair",
		}
	}
	return nil
}

// samples gathers what is needed to make a layer's blob again, while it is unpacked.
type samples struct {
	blob, archive head
	file          *os.File
	recipe        *bufio.Writer
}

// head keeps the beginning of what is written to it.
type head struct {
	b     []byte
	limit int
}

func (h *head) Write(p []byte) (int, error) {
	if n := min(len(p), h.limit-len(h.b)); n > 0 {
		if h.b == nil {
			h.b = make([]byte, 0, h.limit)
		}
		h.b = append(h.b, p[:n]...)
	}
	return len(p), nil
}

// newSamples begins with a blob of size bytes; the recipe is written to a new file of that name.
func newSamples(recipe string, size int64) (*samples, error) {
	f, err := os.OpenFile(recipe, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return &samples{
		blob: head{limit: int(min(archive.SampleBlob, size))}, archive: head{limit: archive.SampleArchive},
		file: f, recipe: bufio.NewWriterSize(f, 64<<10),
	}, nil
}

func (s *samples) close() { _ = s.file.Close() }

// identify returns the blob with its form, nil when it cannot be made again: then the recipe goes. Precondition: both
// samples are complete, and the recipe is.
func (s *samples) identify(from Blob, rebuildable bool) (*Blob, error) {
	ok := rebuildable
	if ok && from.Form == "" { // else it is known, and what is read here may not be that blob
		from.Form, from.Head, ok = archive.Identify(s.archive.b, s.blob.b)
	}
	if !ok {
		return nil, os.Remove(s.file.Name())
	}
	return &from, s.recipe.Flush()
}
