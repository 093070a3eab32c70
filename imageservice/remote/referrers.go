package remote

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxPages bounds how often a list of referrers goes on.
const maxPages = 10

// Referrers asks for what refers to a manifest, by OCI's API of 1.1: an index, which may come in several pages. Those of another
// artifact type may be among them. A registry without the API gives an error that is ErrNotFound or ErrInvalid.
func (s *Session) Referrers(ctx context.Context, d digest.Digest, artifactType string) (pages [][]byte, err error) {
	p := s.schedule("referrers of "+d.String(), s.capable(docker.HostCapabilityPull|docker.HostCapabilityResolve))
	for {
		e, err := p.pick(ctx)
		if err != nil {
			return nil, err
		}
		address, name := s.url(e, "referrers", d.String())
		pages, err := s.pagesFrom(ctx, e, withQuery(address, "artifactType", artifactType))
		if err == nil {
			return pages, nil
		}
		if err := p.failed(ctx, name, err); err != nil {
			return nil, err
		}
	}
}

// withQuery adds a parameter to an address of ours.
func withQuery(address, key, value string) string {
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	return address + separator + url.Values{key: {value}}.Encode()
}

func (s *Session) pagesFrom(ctx context.Context, e *endpoint, address string) (pages [][]byte, err error) {
	for address != "" {
		if len(pages) == maxPages {
			return nil, fmt.Errorf("%w: more than %d pages of referrers", ErrInvalid, maxPages)
		}
		page, next, err := s.page(ctx, e, address)
		if err != nil {
			return nil, err
		}
		pages, address = append(pages, page), next
	}
	return pages, nil
}

// page reads one page and says where the next is; empty if it is the last.
func (s *Session) page(ctx context.Context, e *endpoint, address string) (data []byte, next string, err error) {
	resp, b, err := s.stream(ctx, e, address, http.Header{"Accept": {ocispec.MediaTypeImageIndex}}, http.StatusOK)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = b.Close() }() // read to its end, or abandoned
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if kind = strings.TrimSpace(kind); kind != ocispec.MediaTypeImageIndex {
		return nil, "", fmt.Errorf("%w: referrers have media type %q", ErrInvalid, printable(kind))
	}
	if data, err = io.ReadAll(io.LimitReader(b, MaxManifest+1)); err != nil {
		return nil, "", err
	}
	if len(data) > MaxManifest {
		return nil, "", fmt.Errorf("%w: referrers of more than %d bytes", ErrInvalid, MaxManifest)
	}
	next, err = nextPage(address, resp.Header)
	return data, next, err
}

// nextPage finds the link to the next page. It must not lead to another host, which is not to get what this one does.
func nextPage(address string, h http.Header) (string, error) {
	for _, value := range h.Values("Link") {
		target, found := nextLink(value)
		if !found {
			continue
		}
		from, err := url.Parse(address)
		if err != nil {
			return "", err
		}
		to, err := from.Parse(target)
		if err != nil || !sameOrigin(from, to) {
			return "", fmt.Errorf("%w: the next page of referrers is at %q", ErrInvalid, printable(target))
		}
		return to.String(), nil
	}
	return "", nil
}

// nextLink is the target of the first link (RFC 8288, 3) whose relations include "next", of as much as is well-formed.
func nextLink(text string) (target string, found bool) {
	p := headerText(text)
	for {
		p.skip(" \t,")
		if !p.take('<') {
			return "", false
		}
		target, rest, closed := strings.Cut(string(p), ">")
		if !closed {
			return "", false
		}
		p = headerText(rest)
		if slices.ContainsFunc(strings.Fields(p.relations()), func(r string) bool { return strings.EqualFold(r, "next") }) {
			return target, true
		}
	}
}

// relations takes the parameters of a link and returns the first that is named rel; another one does not count.
func (t *headerText) relations() string {
	rel, seen := "", false
	for t.skip(" \t"); t.take(';'); t.skip(" \t") {
		t.skip(" \t")
		name := t.word()
		t.skip(" \t")
		if !t.take('=') {
			continue
		}
		t.skip(" \t")
		if value := t.value(); !seen && strings.EqualFold(name, "rel") {
			rel, seen = value, true
		}
	}
	return rel
}
