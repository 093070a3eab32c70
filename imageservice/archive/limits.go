package archive

import (
	"errors"
	"fmt"
)

// ErrInvalid says that the archive itself is at fault.
var ErrInvalid = errors.New("invalid archive of images")

// What an archive may have.
const (
	maxEntries  = 200_000
	maxName     = 1024     // bytes of an entry's name
	maxDocument = 4 << 20  // bytes of index.json and manifest.json
	maxImages   = 1000     // that an archive names
	maxNames    = 1000     // of one image
	maxLayers   = 1000     // of one image of Docker's archive
	maxConfig   = 8 << 20  // bytes of a config of Docker's archive
	maxLinks    = 8        // one link to the next
	maxText     = 64 << 20 // bytes of all names
)

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}
