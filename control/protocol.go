package control

import (
	"encoding/json"
	"path/filepath"
	"time"

	"github.com/criserver/criserver/imageservice"
)

// maxRequest bounds a request, in bytes.
const maxRequest = 256 << 10

// Socket is where the criserver with this state directory listens.
func Socket(state string) string { return filepath.Join(state, "control.sock") }

// request is what a client sends.
type request struct {
	Call string          `json:"call"`
	Args json.RawMessage `json:"args"`
}

// reply is one line of an answer.
type reply struct {
	Progress *Progress       `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"`
	Kind     string          `json:"kind,omitempty"` // of an error that callers act on
}

// Progress says how far a call is.
type Progress struct {
	Done   int64  `json:"done"` // bytes
	Total  int64  `json:"total"`
	Image  string `json:"image"`
	Ended  int    `json:"ended,omitempty"` // layers of a pull
	Layers int    `json:"layers,omitempty"`
	Stage  string `json:"stage,omitempty"` // of a pull: what takes its time
}

// kinds are what an error of a reply is on both sides.
var kinds = map[string]error{"not found": imageservice.ErrNotFound, "invalid reference": imageservice.ErrInvalidReference}

// Pull asks for an image of a registry. The password is empty for anonymous pulls.
type Pull struct {
	Ref      string `json:"ref"`
	User     string `json:"user"`
	Password string `json:"password"`
}

// Refs names images.
type Refs struct {
	Refs []string `json:"refs"`
}

// Verify names the images whose layers are to be read.
type Verify struct {
	Refs  []string `json:"refs"`
	Expel bool     `json:"expel"` // damaged layers are to go, with all images that have them
}

// Import says what is wanted of the archive that comes as a descriptor.
type Import struct {
	Names        []string `json:"names"`
	Platform     string   `json:"platform"`
	AllPlatforms bool     `json:"allPlatforms"`
}

// Prune says which of the images that no container uses are to go.
type Prune struct {
	DryRun    bool          `json:"dryRun"`
	OlderThan time.Duration `json:"olderThan"`
}

// Image is a present image.
type Image struct {
	ID          string    `json:"id"`
	RepoTags    []string  `json:"repoTags"`
	RepoDigests []string  `json:"repoDigests"`
	Size        uint64    `json:"size"` // bytes if no layer were shared
	PulledAt    time.Time `json:"pulledAt"`
	Pinned      bool      `json:"pinned"`
	Platform    string    `json:"platform"`
	Containers  int       `json:"containers"` // of this image
}

// Removed says what a removal of images did.
type Removed struct {
	Images []imageservice.Removed `json:"images"`
	Freed  int64                  `json:"freedBytes"` // would be freed, of a dry run
}

// Verified says what is wrong with the layers of an image.
type Verified struct {
	ID       string   `json:"id"`
	RepoTags []string `json:"repoTags"`
	Layers   []Layer  `json:"layers"`
	Removed  bool     `json:"removed"` // with a damaged layer
}

// Layer is a layer that was read.
type Layer struct {
	DiffID  string `json:"diffID"`
	Error   string `json:"error"`        // empty: it is as it was unpacked
	Damaged bool   `json:"damaged"`      // what containers see; if neither is, the error says why it could not be told
	Frame   bool   `json:"frameDamaged"` // what exports need
}
