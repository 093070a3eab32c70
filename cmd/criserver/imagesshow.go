package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/criserver/criserver/control"
	"github.com/criserver/criserver/imageservice"
)

// table prints rows under a heading, in columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(t, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// short is an id as people read it.
func short(id string) string {
	_, hex, found := strings.Cut(id, ":")
	if !found {
		hex = id
	}
	return hex[:min(len(hex), 12)]
}

// names are all names of an image, one a line of the table.
func names(tags, digests []string) []string {
	if len(tags) > 0 {
		return tags
	}
	if len(digests) > 0 {
		return digests
	}
	return []string{"<none>"}
}

func (c *imagesCommand) newList() *cobra.Command {
	return &cobra.Command{
		Use: "list [IMAGE...]", Aliases: []string{"ls"}, Short: "List images",
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(cmd, c, "list", control.Refs{Refs: args}, nil, func(w io.Writer, list []control.Image) error {
				rows := [][]string{{"NAME", "ID", "SIZE", "PULLED", "CONTAINERS", ""}}
				for _, img := range list {
					pinned := ""
					if img.Pinned {
						pinned = "pinned"
					}
					for i, name := range names(img.RepoTags, img.RepoDigests) {
						if i > 0 {
							rows = append(rows, []string{name, short(img.ID), "", "", "", ""})
							continue
						}
						rows = append(rows, []string{name, short(img.ID), human(int64(img.Size)), ago(img.PulledAt), fmt.Sprint(img.Containers), pinned})
					}
				}
				return table(w, rows)
			})
		},
	}
}

// ago is a time as people read it.
func ago(t time.Time) string {
	d := time.Since(t)
	for _, step := range []struct {
		unit string
		of   time.Duration
	}{{"days", 24 * time.Hour}, {"hours", time.Hour}, {"minutes", time.Minute}} {
		if d >= 2*step.of {
			return fmt.Sprintf("%d %s ago", d/step.of, step.unit)
		}
	}
	return "just now"
}

func (c *imagesCommand) newPull() *cobra.Command {
	var args control.Pull
	var password bool
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image from its registry", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			args.Ref = refs[0]
			if password {
				line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64<<10)).ReadString('\n')
				if err != nil && !errors.Is(err, io.EOF) {
					return fmt.Errorf("read password: %w", err)
				}
				args.Password = strings.TrimRight(line, "\r\n")
			}
			return call(cmd, c, "pull", args, nil, func(w io.Writer, img control.Image) error {
				_, err := fmt.Fprintf(w, "%s %s\n", img.ID, human(int64(img.Size)))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&args.User, "user", "", "`NAME` at the registry")
	cmd.Flags().BoolVar(&password, "password-stdin", false, "read the password from standard input")
	return cmd
}

func (c *imagesCommand) newRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove IMAGE...", Aliases: []string{"rm"}, Short: "Remove images with all their names", Args: cobra.MinimumNArgs(1),
		Long: "Remove forgets images with all their names and frees the space of layers that no other image and no container uses.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(cmd, c, "remove", control.Refs{Refs: args}, nil, func(w io.Writer, r control.Removed) error {
				return showRemoved(w, r, "removed", "freed")
			})
		},
	}
}

func showRemoved(w io.Writer, r control.Removed, did, freed string) error {
	for _, img := range r.Images {
		if _, err := fmt.Fprintf(w, "%s %s %s\n", did, short(img.ID), strings.Join(names(img.RepoTags, nil), " ")); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s %s\n", freed, human(r.Freed))
	return err
}

func (c *imagesCommand) newPrune() *cobra.Command {
	var args control.Prune
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove images that no container uses", Args: cobra.NoArgs,
		Long: `Prune removes the images that no container, running or not, was made from, but for pinned ones. What it says was freed is
what the disk has more when it ends.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if args.OlderThan < 0 {
				return fmt.Errorf("--older-than %s is negative", args.OlderThan)
			}
			return call(cmd, c, "prune", args, nil, func(w io.Writer, r control.Removed) error {
				if args.DryRun {
					return showRemoved(w, r, "would remove", "would free")
				}
				return showRemoved(w, r, "removed", "freed")
			})
		},
	}
	cmd.Flags().BoolVar(&args.DryRun, "dry-run", false, "only say what would be removed")
	cmd.Flags().DurationVar(&args.OlderThan, "older-than", 0, "only images that were pulled or imported longer ago, for example 72h")
	return cmd
}

func (c *imagesCommand) newVerify() *cobra.Command {
	var expel bool
	verify := &cobra.Command{
		Use: "verify [IMAGE...]", Short: "Read layers and compare them with what was unpacked",
		Long: `Verify reads all layers of the images, or of all that there are, from the disk. It ends with exit code 4 if one is damaged, also if
that is only a frame, which containers do not need: an image with it cannot be exported.

With --expel damaged layers go, with all images that have them, so that a pull brings both anew; what runs on them goes on. (A layer
stays when images are removed while a container runs on it, and a pull finds it present.)`,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := ask[[]control.Verified](cmd, c, "verify", control.Verify{Refs: args, Expel: expel}, nil)
			if err == nil {
				err = printed(cmd, c, list, showVerified)
			}
			if err != nil || !slices.ContainsFunc(list, damaged) {
				return err
			}
			if expel {
				return codeError{exitDamaged, errors.New("layers were damaged; they are gone with the images that had them, a pull brings both anew")}
			}
			return codeError{exitDamaged, errors.New("layers are damaged; with --expel they and the images that have them go, and a pull brings both anew")}
		},
	}
	verify.Flags().BoolVar(&expel, "expel", false, "take damaged layers away, with all images that have them")
	return verify
}

// damaged is also an image of which only a frame is.
func damaged(img control.Verified) bool {
	return slices.ContainsFunc(img.Layers, func(l control.Layer) bool { return l.Damaged || l.Frame })
}

func showVerified(w io.Writer, list []control.Verified) error {
	for _, img := range list {
		for _, l := range img.Layers {
			if l.Error != "" {
				fmt.Fprintf(os.Stderr, "%s: %s\n", short(img.ID), l.Error)
			}
		}
		verdict := health(img)
		if img.Removed {
			verdict += ", removed"
		}
		if _, err := fmt.Fprintf(w, "%s %s: %s\n", short(img.ID), strings.Join(names(img.RepoTags, nil), " "), verdict); err != nil {
			return err
		}
	}
	return nil
}

// health says how an image is.
func health(img control.Verified) string {
	some := func(is func(control.Layer) bool) bool { return slices.ContainsFunc(img.Layers, is) }
	switch {
	case some(func(l control.Layer) bool { return l.Damaged }):
		return "DAMAGED"
	case some(func(l control.Layer) bool { return l.Frame }):
		return "good, but a frame is DAMAGED: it cannot be exported"
	case some(func(l control.Layer) bool { return l.Error != "" }):
		return "could not tell"
	}
	return "good"
}

func (c *imagesCommand) newUsage() *cobra.Command {
	return &cobra.Command{
		Use: "usage", Short: "Tell which image and which container owns what of the disk", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(cmd, c, "usage", struct{}{}, nil, showUsage)
		},
	}
}

func showUsage(w io.Writer, u imageservice.DiskUsage) error {
	rows := [][]string{{"IMAGE", "NAME", "OWN", "SHARED", "CONTAINERS"}}
	for _, img := range u.Images {
		rows = append(rows, []string{short(img.ID), names(img.RepoTags, img.RepoDigests)[0], human(int64(img.Unique)), human(int64(img.Shared)), fmt.Sprint(len(img.Containers))})
	}
	rows = append(rows, nil, []string{"CONTAINER", "", "WRITTEN", "LAYERS", ""})
	for _, ctr := range u.Containers {
		written := "unknown"
		if ctr.Known {
			written = human(int64(ctr.Bytes))
		}
		rows = append(rows, []string{short(ctr.ID), "", written, fmt.Sprint(len(ctr.Layers)), ""})
	}
	total, orphans := uint64(0), uint64(0)
	for _, l := range u.Layers {
		total += l.Bytes
		if len(l.Images) == 0 {
			orphans += l.Bytes
		}
	}
	if err := table(w, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d layers take %s; %s of it no image has: it belongs to containers of removed images, or to pulls\n", len(u.Layers), human(int64(total)), human(int64(orphans)))
	return err
}
