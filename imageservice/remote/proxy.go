package remote

import (
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
