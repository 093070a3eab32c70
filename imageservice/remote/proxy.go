package remote

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"golang.org/x/net/http/httpproxy"
)

// Direct as a host's Proxy means none, whatever the environment says.
const Direct = "direct"

// ParseProxy checks a host's Proxy. User and password do not belong there, where configurations are shown: the environment
// takes them.
func ParseProxy(text string) (*url.URL, error) {
	if text == Direct {
		return nil, nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Path != "" && u.Path != "/":
		return nil, fmt.Errorf("proxy is neither %q nor a URL such as http://proxy:3128", Direct)
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" && u.Scheme != "socks5h":
		return nil, fmt.Errorf("proxy has scheme %q, not http, https, socks5 or socks5h", u.Scheme)
	case u.User != nil:
		return nil, fmt.Errorf("proxy of %s has a user in it, which only the environment may (HTTPS_PROXY)", u.Host)
	}
	return u, nil
}

// proxies chooses the proxy of each request: that of the host, else that of the environment (HTTPS_PROXY, HTTP_PROXY,
// NO_PROXY) as it is now.
func (c Config) proxies() func(*http.Request) (*url.URL, error) {
	environment := httpproxy.FromEnvironment().ProxyFunc()
	return func(r *http.Request) (*url.URL, error) {
		if own := c.host(r.URL.Host).Proxy; own != "" {
			return ParseProxy(own)
		}
		return environment(r.URL)
	}
}

// proxyRefusal says that a proxy does not lead to the host: credentials are missing or wrong, or it is not meant to be reached. To
// ask again would not change that.
type proxyRefusal struct {
	proxy string // host:port
	user  bool   // credentials were sent
	code  int
}

func (e *proxyRefusal) Error() string {
	text := fmt.Sprintf("proxy %s answers %d %s", e.proxy, e.code, http.StatusText(e.code))
	switch {
	case e.code != http.StatusProxyAuthRequired:
		return text
	case e.user:
		return text + ": it does not take the user and password of HTTPS_PROXY or HTTP_PROXY"
	}
	return text + ": it wants a user and password, which HTTPS_PROXY and HTTP_PROXY of criserver's environment can have"
}

// refusedByProxy looks at what a proxy said of a connection that it was asked for.
func refusedByProxy(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	if status := (&statusError{code: resp.StatusCode}); resp.StatusCode >= 400 && !status.transient() {
		return &proxyRefusal{proxy: proxy.Host, user: proxy.User != nil, code: resp.StatusCode}
	}
	return nil
}

// proxyOf is the proxy by which a request went; nil if it went without.
func (s *Session) proxyOf(r *http.Request) *url.URL {
	proxy, err := s.proxy(r)
	if err != nil {
		return nil
	}
	return proxy
}
