package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// An otlpClient sends spans to a collector by OTLP over HTTP, as protobuf
// (opentelemetry.io/docs/specs/otlp, "OTLP/HTTP"). It is otlptrace's Client.
//
// It is not otlptracehttp, because that links all of gRPC and its gateway: 5.5
// MB more of snapd and 3.8 MB more memory in each of its processes, for the
// envelope of one request. The request's body is the same bytes as a
// tracepb.TracesData, which has the same single field.
type otlpClient struct {
	endpoint string
	header   http.Header
	gzip     bool
	timeout  time.Duration // of one upload, with its repetitions
	backoff  time.Duration // before the first repetition
	http     *http.Client
	log      *slog.Logger
	failing  bool // the last upload failed, and that was said
}

// maxAnswer bounds what is read of a collector's answer.
const maxAnswer = 64 << 10

// newClient makes a client for the endpoint, with the settings of OpenTelemetry's
// environment variables (opentelemetry.io/docs/specs/otel/protocol/exporter).
func newClient(endpoint string, getenv func(string) string, log *slog.Logger) (*otlpClient, error) {
	// The variable for traces goes before the one for everything.
	env := func(name string) string {
		if v := getenv("OTEL_EXPORTER_OTLP_TRACES_" + name); v != "" {
			return v
		}
		return getenv("OTEL_EXPORTER_OTLP_" + name)
	}
	c := &otlpClient{endpoint: endpoint, header: http.Header{}, timeout: 10 * time.Second, backoff: time.Second, log: log}
	if p := env("PROTOCOL"); p != "" && p != "http/protobuf" {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%s: only http/protobuf is spoken", p)
	}
	for pair := range strings.SplitSeq(env("HEADERS"), ",") {
		name, value, ok := strings.Cut(pair, "=")
		if v, err := url.PathUnescape(strings.TrimSpace(value)); ok && err == nil {
			c.header.Add(strings.TrimSpace(name), v)
		} else if strings.TrimSpace(pair) != "" {
			return nil, errors.New("OTEL_EXPORTER_OTLP_HEADERS: want NAME=VALUE,…") // which may be secret
		}
	}
	if v := env("TIMEOUT"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n <= 0 || n > 3600_000 {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_TIMEOUT=%s: want milliseconds", v)
		}
		c.timeout = time.Duration(n) * time.Millisecond
	}
	switch v := env("COMPRESSION"); v {
	case "gzip":
		c.gzip = true
	case "", "none":
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_COMPRESSION=%s: want gzip or none", v)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.ResponseHeaderTimeout = 1, 1, 10*time.Second
	var err error
	if t.TLSClientConfig, err = tlsConfig(env("CERTIFICATE"), env("CLIENT_CERTIFICATE"), env("CLIENT_KEY")); err != nil {
		return nil, err
	}
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// tlsConfig reads the files that the variables name.
func tlsConfig(roots, certificate, key string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if roots != "" {
		pem, err := os.ReadFile(roots)
		if err != nil {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CERTIFICATE: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CERTIFICATE: %s: no certificate in it", roots)
		}
	}
	if certificate != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Start and Stop are otlptrace's; there is nothing to do.
func (c *otlpClient) Start(context.Context) error { return nil }

func (c *otlpClient) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces sends spans. A collector that is not there costs the spans and
// one line in the log, so the error is always nil.
func (c *otlpClient) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err == nil {
		err = c.upload(ctx, body)
	}
	switch { // uploads come one after another
	case err != nil && !c.failing:
		c.log.Error("spans are lost", "endpoint", c.endpoint, "err", err)
	case err == nil && c.failing:
		c.log.Info("spans are sent again", "endpoint", c.endpoint)
	}
	c.failing = err != nil
	return nil
}

func (c *otlpClient) upload(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if c.gzip {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(body) // into memory
		z.Close()
		body = b.Bytes()
	}
	for pause := c.backoff; ; pause *= 2 {
		again, wait, err := c.post(ctx, body)
		if err == nil || !again {
			return err
		}
		select {
		case <-time.After(max(pause, wait)):
		case <-ctx.Done():
			return err
		}
	}
}

// post makes one request. It says whether to try again, and not before when.
func (c *otlpClient) post(ctx context.Context, body []byte) (again bool, wait time.Duration, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint, bytes.NewReader(body))
	if err != nil {
		return false, 0, err
	}
	for name, values := range c.header {
		r.Header[name] = values
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("User-Agent", "snapfs")
	if c.gzip {
		r.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return true, 0, err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // so that the connection is used again
	if resp.StatusCode/100 == 2 {
		return false, 0, nil
	}
	switch resp.StatusCode { // "Retryable Response Codes"
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		again = true
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 && n < 3600 {
			wait = time.Duration(n) * time.Second
		}
	}
	return again, wait, fmt.Errorf("POST %s: %s", c.endpoint, resp.Status)
}

// CheckEndpoint says why s is no collector's base URL.
func CheckEndpoint(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return fmt.Errorf("want a URL such as http://127.0.0.1:4318: %w", err)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.Opaque != "":
		return errors.New("want a URL such as http://127.0.0.1:4318")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("a password, query or fragment has no place here; OTEL_EXPORTER_OTLP_HEADERS carries secrets")
	}
	return nil
}
