package imageservice

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/criserver/criserver/imageservice/progress"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/stage"
	"github.com/criserver/criserver/store/imagedb"
)

const (
	// resolveBound limits manifests of one pull, and its config: a few small documents. Layers are bounded by throughput.
	resolveBound = 5 * time.Minute
	// fetchTries is how often a pull takes part in fetching one layer: when another pull's registry failed, its own may not.
	fetchTries = 3
	// stageLayers is the stage in which a pull brings layers.
	stageLayers = "layers"
)

// PullRequest asks for an image.
type PullRequest struct {
	Ref  string
	Auth remote.Auth // the zero value is anonymous

	Progress *Progress
}

// source is a session that lives as long as anybody fetches through it.
type source struct {
	*remote.Session
	users atomic.Int32
}

func (s *source) release() {
	if s.users.Add(-1) == 0 {
		s.Close()
	}
}

// Pull brings the image onto the node and returns its id. It asks the registry every time what the reference means;
// layers that are present are not fetched again. When ctx ends, only the wait ends, and the work too if nobody else
// waits for it. Errors: see ErrNotFound and the others.
func (s *Service) Pull(ctx context.Context, r PullRequest) (id string, err error) {
	t, err := parse(r.Ref)
	if err != nil {
		return "", err
	}
	preload := s.underWay()
	verification := s.verification.Load()
	key, err := pullKey(t, r.Auth, verification)
	if err != nil {
		return "", err
	}
	r.Progress.follow(s, key)
	id, _, err = s.pulls.do(ctx, key, false, func(ctx context.Context) (string, error) {
		a := &account{s: s, image: t.String(), began: time.Now(), ended: map[string]bool{}}
		r.Progress.see(a)
		s.accounts.Store(key, a)
		defer s.accounts.Delete(key)
		return s.pull(ctx, t, r.Auth, verification, a)
	})
	if err = classify(t.String(), err); errors.Is(err, ErrRegistryUnavailable) {
		return s.fromPreload(ctx, preload, t, err)
	}
	return id, err
}

// pullKey is the same for pulls that may share one run. It begins with the reference; the secrets are in it only as a
// digest. v is there while the run is, so its address tells it from a later one.
func pullKey(t target, auth remote.Auth, v *Verification) (string, error) {
	type plainAuth remote.Auth // without the redacting methods
	secrets, err := json.Marshal(plainAuth(auth))
	if err != nil {
		return "", fmt.Errorf("pull image %s: auth cannot be encoded", t)
	}
	sum := sha256.Sum256(secrets)
	return fmt.Sprintf("%s\x00%x%p", t, sum, v), nil
}

func (s *Service) pull(ctx context.Context, t target, auth remote.Auth, v *Verification, a *account) (id string, err error) {
	end := s.book.Pull()
	defer func() { end(err) }()
	session, err := s.registries.Open(t.repo, auth)
	if err != nil {
		return "", err
	}
	src := &source{Session: session}
	src.users.Store(1)
	defer src.release()

	var r resolved
	err = stage.Run(ctx, "resolve", resolveBound, func(ctx context.Context) (err error) {
		r, err = s.resolve(ctx, session, t)
		return err
	})
	if err == nil {
		err = v.verifyPull(ctx, session, t, &r)
	}
	switch {
	case err != nil:
	case r.artifact:
		id, err = s.pullArtifact(ctx, t, src, &r, a)
	default:
		id, err = s.pullImage(ctx, t, src, &r, a)
	}
	if err == nil && len(a.layers) > 0 {
		a.log("pulled", a.layers)
	}
	return id, err
}

// pullImage brings config and layers of an image and records it.
func (s *Service) pullImage(ctx context.Context, t target, src *source, r *resolved, a *account) (id string, err error) {
	err = stage.Run(ctx, "config", resolveBound, func(ctx context.Context) error { return s.fetchConfig(ctx, src, r, s.platform) })
	if err != nil {
		return "", err
	}
	diffIDs := unique(r.image.RootFS.DiffIDs)
	if err := s.holds.acquire(ctx, diffIDs); err != nil {
		return "", err
	}
	for _, id := range diffIDs {
		a.want(string(id), r.doc.Layers[slices.Index(r.image.RootFS.DiffIDs, id)].Size, s.layers.Has(id))
	}
	unfollow := a.follow(ctx, reportEvery)
	defer s.layers.HoldSync()() // else the record would wait for the disk behind all layers
	err = stage.Run(ctx, stageLayers, 0, func(ctx context.Context) error {
		return s.eachLayer(ctx, r, func(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) error {
			entry, err := s.layer(ctx, src, desc, diffID)
			if err == nil {
				a.add(string(diffID), entry)
			}
			return err
		})
	})
	unfollow()
	if err == nil {
		err = stage.Run(ctx, "record", 0, func(context.Context) error { return s.record(t, r, diffIDs) })
	}
	if err != nil {
		if releaseErr := s.holds.release(diffIDs); releaseErr != nil {
			s.log.Warn("layers of a failed pull stay", "image", t.String(), "error", releaseErr)
		}
		return "", err
	}
	return string(r.doc.Config.Digest), nil
}

// eachLayer calls bring for all layers at the same time and returns when all are present, or after the first error when
// everything begun has ended. No more of them wait for their turn than could have it: so a pull of few layers that comes later
// is not behind all those of this one. The largest begin first: a large one at the end would leave processors without work.
func (s *Service) eachLayer(ctx context.Context, r *resolved, bring func(context.Context, ocispec.Descriptor, digest.Digest) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.Bounds.Layers)
	begun := map[digest.Digest]bool{}
	for _, i := range largestFirst(len(r.doc.Layers), func(i int) int64 { return r.doc.Layers[i].Size }) {
		desc, diffID := r.doc.Layers[i], r.image.RootFS.DiffIDs[i]
		if begun[diffID] {
			continue
		}
		begun[diffID] = true
		g.Go(func() error {
			if err := bring(ctx, desc, diffID); err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(r.doc.Layers), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// largestFirst is the order of n blobs by size.
func largestFirst(n int, size func(i int) int64) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(size(j), size(i)) })
	return order
}

// layer returns when the layer is present; the entry is nil if it was before. The caller holds it.
func (s *Service) layer(ctx context.Context, src *source, desc ocispec.Descriptor, diffID digest.Digest) (*progress.Layer, error) {
	for try := 1; ; try++ {
		if s.layers.Has(diffID) {
			return nil, nil
		}
		src.users.Add(1)
		work := func(ctx context.Context) (*progress.Layer, error) {
			defer src.release()
			return s.once(ctx, desc, diffID, func(ctx context.Context, entry *progress.Layer) error {
				_, err := s.fetch(ctx, src.Session, wanted{desc: desc, diffID: diffID, entry: entry})
				return err
			})
		}
		entry, ours, err := s.fetches.do(ctx, string(diffID), true, work)
		if !ours {
			src.release()
		}
		if err == nil || ours || ctx.Err() != nil || try == fetchTries {
			return entry, err
		}
	}
}

// once waits for the layer's turn and brings it, unless it was committed since somebody looked.
func (s *Service) once(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, bring func(context.Context, *progress.Layer) error) (entry *progress.Layer, err error) {
	entry = s.book.Layer(string(diffID), desc.Size)
	defer func() { entry.End(err) }()
	leave, err := s.bounds.enter(ctx, desc)
	if err != nil {
		return entry, err
	}
	defer leave()
	if s.layers.Has(diffID) {
		return entry, nil
	}
	entry.Begin()
	return entry, bring(ctx, entry)
}

// record stores the pulled image.
func (s *Service) record(t target, r *resolved, diffIDs []digest.Digest) error {
	var names []string
	if t.tag != "" {
		names = []string{t.String()}
	}
	return s.put(r, names, []string{t.repo.Name() + "@" + r.top.String()}, diffIDs)
}

// put stores an image whose layers the caller holds. The holds become the image's, or are let go if it has its own already.
func (s *Service) put(r *resolved, names, repoDigests []string, diffIDs []digest.Digest) error {
	img := imagedb.Image{
		ID: r.doc.Config.Digest, Config: r.config, User: r.image.Config.User,
		ManifestDigest: r.manifest.Digest, Manifest: r.manifest.Bytes,
		Names: names, RepoDigests: repoDigests, DiffIDs: r.image.RootFS.DiffIDs,
		Size:     int64(len(r.config)+len(r.manifest.Bytes)) + s.size(diffIDs),
		PulledAt: time.Now().UTC(), Documents: r.kept,
	}
	s.images.Lock()
	present := s.db.Snapshot().ByID(img.ID) != nil
	err := s.db.Put(img)
	s.images.Unlock()
	if err != nil || !present {
		return err
	}
	return s.holds.release(diffIDs)
}

// size is what the layers take together, in bytes.
func (s *Service) size(diffIDs []digest.Digest) (sum int64) {
	wanted := map[digest.Digest]bool{}
	for _, id := range diffIDs {
		wanted[id] = true
	}
	for _, l := range s.layers.List() {
		if wanted[l.DiffID] {
			sum += l.Bytes
		}
	}
	return sum
}

// SetRegistries replaces how registries are spoken to, for pulls that begin from now on.
func (s *Service) SetRegistries(cfg remote.Config) {
	cfg.Lanes = s.cfg.Registry.Lanes
	s.registries.Configure(cfg)
}
