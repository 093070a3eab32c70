package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// startRegistry starts Debian's docker-registry on loopback until the part ends, and returns its address and process.
func (b *bench) startRegistry() (addr string, pid int, err error) {
	dir, err := b.mkdir("registry")
	if err != nil {
		return "", 0, err
	}
	type dict = map[string]any
	config, err := json.Marshal(dict{ // YAML takes JSON
		"version": "0.1", "log": dict{"level": "info", "formatter": "json", "accesslog": dict{"disabled": true}},
		"storage": dict{"filesystem": dict{"rootdirectory": filepath.Join(dir, "storage")}}, "http": dict{"addr": "127.0.0.1:0"}})
	if err != nil {
		return "", 0, err
	}
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return "", 0, err
	}
	cmd := exec.Command("docker-registry", "serve", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := cmd.StderrPipe()
	if err != nil {
		return "", 0, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, err
	}
	b.later(func() error {
		_ = cmd.Process.Kill() // may be gone already
		_ = cmd.Wait()         // was killed
		return nil
	})
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), "listening on "); ok {
			addr, _, _ = strings.Cut(rest, `"`)
			addr, _, _ = strings.Cut(addr, ",")
			go func() { _, _ = io.Copy(io.Discard, said) }() // ends with the process
			return addr, cmd.Process.Pid, nil
		}
	}
	return "", 0, errors.Join(errors.New("docker-registry does not say where it listens"), lines.Err())
}

// push uploads the image.
func (m *image) push(ctx context.Context, addr, name, tag string) error {
	for d, blob := range m.blobs {
		if err := pushBlob(ctx, addr, name, d, blob); err != nil {
			return fmt.Errorf("push blob %s: %w", d, err)
		}
	}
	_, err := send(ctx, http.MethodPut, "http://"+addr+"/v2/"+name+"/manifests/"+tag, ocispec.MediaTypeImageManifest, m.manifest)
	return err
}

func pushBlob(ctx context.Context, addr, name string, d digest.Digest, blob []byte) error {
	location, err := send(ctx, http.MethodPost, "http://"+addr+"/v2/"+name+"/blobs/uploads/", "", nil)
	if err != nil {
		return err
	}
	u, err := url.Parse(location)
	if err != nil {
		return err
	}
	q := u.Query()
	q.Set("digest", d.String())
	u.RawQuery = q.Encode()
	_, err = send(ctx, http.MethodPut, u.String(), "application/octet-stream", blob)
	return err
}

// send makes one request and returns the Location of the answer.
func send(ctx context.Context, method, address, mediaType string, body []byte) (location string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", err
	}
	if resp.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s %s: %s: %s", method, address, resp.Status, text)
	}
	return resp.Header.Get("Location"), nil
}
