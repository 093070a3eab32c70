package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/control"
	"github.com/criserver/criserver/imageservice"
)

func (c *imagesCommand) newImport() *cobra.Command {
	var args control.Import
	cmd := &cobra.Command{
		Use: "import FILE|DIR|-", Short: "Import images from an archive", Args: cobra.ExactArgs(1),
		Long: `Import takes what docker save, skopeo copy, ctr images export and criserver images export write: Docker's archive or an OCI
layout, as a tar (plain, gzip or zstd; - is standard input) or, for a layout, a directory. A tar that is compressed or comes
from a pipe is copied first, to the directory of images. Images that are present are not imported again.`,
		RunE: func(cmd *cobra.Command, files []string) error {
			file, err := source(files[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }() // only read
			return call(cmd, c, "import", args, file, func(w io.Writer, list []imageservice.Imported) error {
				for _, img := range list {
					note := ""
					if img.Present {
						note = " (was present)"
					}
					if _, err := fmt.Fprintf(w, "%s %s %s%s\n", img.ID, cmp.Or(img.Platform, img.ArtifactType), strings.Join(names(img.Names, img.RepoDigests), " "), note); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().StringArrayVar(&args.Names, "name", nil, "`NAME` for the image instead of those in the archive; may be repeated")
	cmd.Flags().StringVar(&args.Platform, "platform", "", "import the image for this `OS/ARCH[/VARIANT]` instead of the node's")
	cmd.Flags().BoolVar(&args.AllPlatforms, "all-platforms", false, "import the images for all platforms that the archive has")
	cmd.MarkFlagsMutuallyExclusive("platform", "all-platforms")
	return cmd
}

// source opens what is to be imported so that criserver can read it by itself: what is neither file nor directory comes
// through a pipe.
func source(name string, stdin io.Reader) (*os.File, error) {
	f, isFile := stdin.(*os.File)
	if name != "-" {
		var err error
		if f, err = os.Open(name); err != nil {
			return nil, err
		}
		isFile = true
	} else if isTerminal(stdin) {
		return nil, errors.New("standard input is a terminal, not an archive")
	}
	if isFile {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if info.Mode().IsRegular() || info.IsDir() {
			return f, nil
		}
		stdin = f
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() { // ends with the process, or when nobody reads
		_, _ = io.Copy(w, stdin) // a short archive is found out by who reads it
		_ = w.Close()
	}()
	return r, nil
}

func (c *imagesCommand) newExport() *cobra.Command {
	var output, compress string
	cmd := &cobra.Command{
		Use: "export -o FILE|- IMAGE...", Short: "Export images to an archive", Args: cobra.MinimumNArgs(1),
		Long: `Export writes one tar that is an OCI layout and Docker's archive at once. Layers in it are not compressed, and are byte for
byte what they were before the registry compressed them: images keep their ids. An artifact can be exported if none of it was
compressed. The whole tar is compressed if the file's
name ends with .gz, .tgz or .zst, or --compress says so.`,
		RunE: func(cmd *cobra.Command, refs []string) error {
			how, err := compression(compress, output)
			if err != nil {
				return err
			}
			out, err := newDestination(output, how, cmd.OutOrStdout())
			if err != nil {
				return err
			}
			err = call(cmd, c, "export", control.Refs{Refs: refs}, out.pipe, func(io.Writer, struct{}) error { return nil })
			return out.finish(err)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` to write, - for standard output")
	cmd.Flags().StringVar(&compress, "compress", "", "`HOW` the tar is compressed: none, gzip or zstd")
	_ = cmd.MarkFlagRequired("output") // it is there
	return cmd
}

// compression is what was asked for, else what the name says.
func compression(asked, name string) (string, error) {
	switch asked {
	case "none", "gzip", "zstd":
		return asked, nil
	case "":
	default:
		return "", fmt.Errorf("--compress %q is not none, gzip or zstd", asked)
	}
	switch filepath.Ext(name) {
	case ".gz", ".tgz":
		return "gzip", nil
	case ".zst", ".tzst":
		return "zstd", nil
	}
	return "none", nil
}

// destination is where an export goes: through a pipe from criserver to a file, which has its name only once it is whole.
type destination struct {
	pipe   *os.File // for criserver to write
	file   *os.File // nil: standard output
	name   string   // that file is to get; empty: it has it
	copied chan error
}

func newDestination(name, compress string, stdout io.Writer) (*destination, error) {
	d := &destination{copied: make(chan error, 1)}
	out := stdout
	if name == "-" {
		if isTerminal(stdout) {
			return nil, errors.New("standard output is a terminal; an archive goes to a file or a pipe")
		}
	} else {
		var err error
		if d.file, d.name, err = create(name); err != nil {
			return nil, err
		}
		out = d.file
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, d.discard())
	}
	d.pipe = w
	go func() {
		err := pack(out, r, compress)
		d.copied <- errors.Join(err, r.Close()) // criserver stops writing if this end is closed
	}()
	return d, nil
}

// create opens a file that is to get the name. What has the name and is no file, a device or a named pipe, is written itself:
// a file must not take its place.
func create(name string) (f *os.File, later string, err error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		f, err = os.OpenFile(name, os.O_WRONLY, 0)
		return f, "", err
	}
	f, err = os.CreateTemp(filepath.Dir(name), ".criserver-export-")
	return f, name, err
}

func pack(w io.Writer, r io.Reader, how string) error {
	var z io.WriteCloser
	var err error
	switch how {
	case "gzip":
		z, err = gzip.NewWriterLevel(w, gzip.DefaultCompression)
	case "zstd":
		z, err = zstd.NewWriter(w)
	default:
		_, err = io.Copy(w, r)
		return err
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(z, r)
	return errors.Join(err, z.Close())
}

// finish waits until all is written. err is what became of the call.
func (d *destination) finish(err error) error {
	_ = d.pipe.Close() // criserver has its own
	if copied := <-d.copied; copied != nil {
		err = fmt.Errorf("write archive: %w", copied) // the cause, if both failed
	}
	if d.file == nil {
		return err
	}
	if d.name == "" {
		return errors.Join(err, d.file.Close())
	}
	if err == nil {
		err = errors.Join(d.file.Chmod(0o666&^umask()), d.file.Sync(), d.file.Close())
	}
	if err == nil {
		err = os.Rename(d.file.Name(), d.name)
	}
	if err != nil {
		return errors.Join(err, d.discard())
	}
	return nil
}

func (d *destination) discard() error {
	if d.file == nil {
		return nil
	}
	_ = d.file.Close() // nothing of it is kept
	if d.name == "" {
		return nil
	}
	return os.Remove(d.file.Name())
}

// umask reads the process' own, which can only be done by setting it.
func umask() os.FileMode {
	old := unix.Umask(0)
	unix.Umask(old)
	return os.FileMode(old)
}
