package imageservice

import (
	"context"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/store/layer"
)

// LayerStore keeps unpacked layers and makes containers' roots of them; *layer.Store is one. It refuses to remove a layer
// with layer.ErrInUse while a root is built on it, also after a restart.
type LayerStore interface {
	Begin(ctx context.Context) (*layer.Writer, error)
	HoldSync() (let func())
	Has(diffID digest.Digest) bool
	List() []layer.Layer
	Users() []layer.User
	Remove(diffID digest.Digest) (freed int64, err error)
	Expel(diffID digest.Digest) error
	Root(ctx context.Context, containerID string, diffIDs []digest.Digest, opts layer.RootOptions) (*os.File, error)
	RemoveRoot(containerID string) error
	Archive(ctx context.Context, diffID digest.Digest, w io.Writer) error
	ArchiveSize(diffID digest.Digest) (int64, error)
	Verify(ctx context.Context, diffID digest.Digest) error
}
