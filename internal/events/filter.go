package events

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// A Filter chooses events: any of the values of each key, as docker's do. The
// zero Filter passes all.
type Filter map[string][]string

// filterKeys tell whether an event fits a value.
var filterKeys = map[string]func(e *control.Event, v string) bool{
	"type":  func(e *control.Event, v string) bool { return e.Type == v },
	"event": func(e *control.Event, v string) bool { return e.Action == v },
	"image": func(e *control.Event, v string) bool {
		if e.Type == Image {
			return sameImage(e.ID, v)
		}
		for image := range strings.SplitSeq(e.Attributes["image"], ",") {
			if sameImage(image, v) {
				return true
			}
		}
		return false
	},
	"container": func(e *control.Event, v string) bool {
		id, name := e.ID, e.Attributes["name"]
		if e.Type != Container {
			id = e.Attributes["container"]
		}
		return v != "" && (name == v || id != "" && strings.HasPrefix(id, v))
	},
}

// sameImage tells whether a reference is the one that v means, with or without its tag.
func sameImage(ref, v string) bool {
	repo := ref
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		repo = ref[:i]
	}
	return ref == v || repo == v
}

// bounds of a filter, which comes from a client.
const maxFilters = 64

// Check returns why a filter is none.
func (f Filter) Check() error {
	n := 0
	for key, values := range f {
		if filterKeys[key] == nil {
			return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("filter %q: want type, event, image or container", key)}
		}
		n += len(values)
	}
	if n > maxFilters {
		return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("%d filters: at most %d are possible", n, maxFilters)}
	}
	return nil
}

// Fits tells whether f passes e.
func (f Filter) Fits(e *control.Event) bool {
	for key, values := range f {
		if !slices.ContainsFunc(values, func(v string) bool { return filterKeys[key](e, v) }) {
			return false
		}
	}
	return true
}

// Attrs makes attributes of pairs of a name and a value; empty values are left out.
func Attrs(pairs ...any) map[string]string {
	m := make(map[string]string, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		if v := text(pairs[i+1]); v != "" {
			m[pairs[i].(string)] = v
		}
	}
	return m
}

func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case int:
		return strconv.Itoa(v)
	case time.Duration:
		return v.Round(time.Millisecond).String()
	case error:
		return v.Error()
	}
	return fmt.Sprint(v)
}
