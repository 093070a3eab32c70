package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/layer"
)

// calls are what can be asked for.
var calls = map[string]func(*Server, context.Context, request, *os.File, *replies) (any, error){
	"list": func(s *Server, _ context.Context, r request, _ *os.File, _ *replies) (any, error) {
		return with(r, s.list)
	},
	"usage": func(s *Server, _ context.Context, _ request, _ *os.File, _ *replies) (any, error) {
		return s.usage(), nil
	},
	"pull":   (*Server).pull,
	"remove": (*Server).remove,
	"prune":  (*Server).prune,
	"verify": (*Server).verify,
	"import": (*Server).importArchive,
	"export": (*Server).export,
}

func (s *Server) call(ctx context.Context, r request, file *os.File, out *replies) (any, error) {
	call, ok := calls[r.Call]
	if !ok {
		return nil, fmt.Errorf("call %q is not known: the command is of another version than the criserver that runs", r.Call)
	}
	return call(s, ctx, r, file, out)
}

// with decodes the arguments of a call.
func with[T, R any](r request, f func(T) (R, error)) (any, error) {
	var args T
	if err := json.Unmarshal(r.Args, &args); err != nil {
		return nil, fmt.Errorf("arguments of %s: %w", r.Call, err)
	}
	return f(args)
}

// users counts the containers of each image.
func (s *Server) users() map[string]int {
	users := map[string]int{}
	if s.config.Containers != nil {
		for _, id := range s.config.Containers() {
			users[id]++
		}
	}
	return users
}

// chosen are the images that refs name, or all if there are no refs.
func (s *Server) chosen(refs []string) ([]*imageservice.Image, error) {
	if len(refs) == 0 {
		return s.config.Images.List(), nil
	}
	var list []*imageservice.Image
	for _, ref := range refs {
		img, err := s.config.Images.Find(ref)
		if err != nil {
			return nil, err
		}
		list = append(list, img)
	}
	return list, nil
}

func (s *Server) list(args Refs) ([]Image, error) {
	images, err := s.chosen(args.Refs)
	if err != nil {
		return nil, err
	}
	users := s.users()
	list := []Image{}
	for _, img := range images {
		list = append(list, Image{ID: img.ID, RepoTags: orNone(img.RepoTags), RepoDigests: orNone(img.RepoDigests), Size: img.Size,
			PulledAt: img.PulledAt, Pinned: img.Pinned, Platform: img.Platform(), Containers: users[img.ID]})
	}
	return list, nil
}

// orNone makes a list that is shown as [].
func orNone(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func (s *Server) usage() imageservice.DiskUsage {
	written := s.config.Written
	if written == nil {
		written = func(string) (bytes, inodes uint64, known bool) { return 0, 0, false }
	}
	return s.config.Images.DiskUsage(written)
}

func (s *Server) pull(ctx context.Context, r request, _ *os.File, out *replies) (any, error) {
	return with(r, func(args Pull) (Image, error) {
		p := &imageservice.Progress{}
		defer out.show(p)()
		id, err := s.config.Images.Pull(ctx, imageservice.PullRequest{Ref: args.Ref, Auth: remote.Auth{Username: args.User, Password: args.Password}, Progress: p})
		if err != nil {
			return Image{}, err
		}
		list, err := s.list(Refs{Refs: []string{id}})
		if err != nil {
			return Image{}, err // removed since
		}
		return list[0], nil
	})
}

func (s *Server) remove(ctx context.Context, r request, _ *os.File, _ *replies) (any, error) {
	return with(r, func(args Refs) (Removed, error) {
		images, err := s.chosen(args.Refs) // all or none: a name that is wrong removes nothing
		if err != nil {
			return Removed{}, err
		}
		all := Removed{Images: []imageservice.Removed{}}
		for _, img := range images {
			one, err := s.config.Images.RemoveCounting(ctx, img.ID)
			if err != nil {
				return all, err
			}
			all.Images = append(all.Images, one)
			all.Freed += one.Freed
		}
		return all, nil
	})
}

func (s *Server) prune(ctx context.Context, r request, _ *os.File, _ *replies) (any, error) {
	return with(r, func(args Prune) (Removed, error) {
		images, freed, err := s.config.Images.Prune(ctx, imageservice.PruneRequest{
			DryRun: args.DryRun, OlderThan: args.OlderThan, Used: func(id string) bool { return s.users()[id] > 0 },
		})
		return Removed{Images: images, Freed: freed}, err
	})
}

func (s *Server) verify(ctx context.Context, r request, _ *os.File, out *replies) (any, error) {
	return with(r, func(args Verify) ([]Verified, error) {
		images, err := s.chosen(args.Refs)
		if err != nil {
			return nil, err
		}
		list := []Verified{}
		known := map[digest.Digest]Layer{}
		for i, img := range images {
			one := Verified{ID: img.ID, RepoTags: orNone(img.RepoTags), Layers: []Layer{}}
			for _, id := range img.DiffIDs {
				l, ok := known[id]
				if !ok {
					if l, err = s.verifyLayer(ctx, id); err != nil {
						return list, err
					}
					known[id] = l
				}
				one.Layers = append(one.Layers, l)
			}
			list = append(list, one)
			out.send(reply{Progress: &Progress{Done: int64(i + 1), Total: int64(len(images)), Image: img.ID}})
		}
		if !args.Expel {
			return list, nil
		}
		return s.expel(ctx, list)
	})
}

// expel takes damaged layers away and says which images went with them, also those that were not asked about. A layer that stays
// hinders none of the others; the error says what went nevertheless.
func (s *Server) expel(ctx context.Context, list []Verified) ([]Verified, error) {
	var errs []error
	var removed []string
	tried := map[string]bool{}
	for _, asked := range list {
		for _, l := range asked.Layers {
			if !l.Damaged && !l.Frame || tried[l.DiffID] {
				continue
			}
			tried[l.DiffID] = true
			gone, err := s.config.Images.Expel(ctx, digest.Digest(l.DiffID))
			errs = append(errs, err)
			for _, img := range gone {
				at := slices.IndexFunc(list, func(v Verified) bool { return v.ID == img.ID })
				if at < 0 {
					at, list = len(list), append(list, Verified{ID: img.ID, RepoTags: orNone(img.RepoTags), Layers: []Layer{l}})
				}
				list[at].Removed = true
				removed = append(removed, img.ID)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return list, fmt.Errorf("expel: %w\nimages that are removed: %s", err, strings.Join(removed, ", "))
	}
	return list, nil
}

func (s *Server) verifyLayer(ctx context.Context, id digest.Digest) (Layer, error) {
	l := Layer{DiffID: string(id)}
	if err := s.config.Images.VerifyLayer(ctx, id); err != nil {
		if ctx.Err() != nil {
			return l, err
		}
		l.Error, l.Damaged, l.Frame = err.Error(), errors.Is(err, layer.ErrDamaged), errors.Is(err, layer.ErrFrameDamaged)
	}
	return l, nil
}

func (s *Server) importArchive(ctx context.Context, r request, file *os.File, out *replies) (any, error) {
	return with(r, func(args Import) ([]imageservice.Imported, error) {
		if file == nil {
			return nil, errors.New("no archive came with the request")
		}
		a, err := archive.Open(ctx, file, archive.Spool(s.config.SpoolDir))
		if err != nil {
			return nil, err
		}
		defer func() { _ = a.Close() }() // only read
		p := &imageservice.Progress{}
		defer out.show(p)()
		return s.config.Images.Import(ctx, a, imageservice.ImportRequest{
			Names: args.Names, Platform: args.Platform, AllPlatforms: args.AllPlatforms, Progress: p})
	})
}

func (s *Server) export(ctx context.Context, r request, file *os.File, out *replies) (any, error) {
	return with(r, func(args Refs) (struct{}, error) {
		if file == nil {
			return struct{}{}, errors.New("no place for the archive came with the request")
		}
		p := &imageservice.Progress{}
		defer out.show(p)()
		err := s.config.Images.Export(ctx, args.Refs, file, p)
		return struct{}{}, errors.Join(err, file.Close())
	})
}
