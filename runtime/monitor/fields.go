package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// decodeFields is json.Unmarshal into the struct c, one field after another.
//
// For a type that it decodes, encoding/json makes what it needs for all types that
// can be reached from it, and keeps that: for specs.Spec, with the containers of
// other systems and with limits that nobody sets, a quarter MiB of every
// monitor, and a third of the time that it takes to come up. So of the types with
// many fields only those are looked at that a configuration has.
func decodeFields(b []byte, c *Config) error {
	d := json.NewDecoder(bytes.NewReader(b))
	_, err := decodeStruct(d, reflect.ValueOf(c).Elem())
	if err == nil {
		if _, err = d.Token(); err == nil {
			err = errors.New("something follows")
		}
	}
	switch {
	case errors.Is(err, errTruncated):
		return io.ErrUnexpectedEOF
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

var errTruncated = errors.New("truncated")

// byField are the types with many fields.
var byField = map[reflect.Type]bool{
	reflect.TypeFor[specs.Spec]():           true,
	reflect.TypeFor[specs.Process]():        true,
	reflect.TypeFor[specs.Linux]():          true,
	reflect.TypeFor[specs.LinuxResources](): true,
}

// decodeStruct decodes an object, or null.
func decodeStruct(d *json.Decoder, v reflect.Value) (null bool, err error) {
	t, err := token(d)
	if err != nil || t == nil {
		return t == nil, err
	}
	if t != json.Delim('{') {
		return false, fmt.Errorf("%v instead of an object", t)
	}
	for d.More() {
		key, err := token(d)
		if err != nil {
			return false, err
		}
		name, ok := key.(string)
		if !ok {
			return false, fmt.Errorf("%v instead of a name", key)
		}
		if err := decodeField(d, field(v, name)); err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
	}
	_, err = token(d)
	return false, err
}

func token(d *json.Decoder) (json.Token, error) {
	t, err := d.Token()
	if errors.Is(err, io.EOF) {
		err = errTruncated
	}
	return t, err
}

// decodeField decodes a value into a field of a struct; an invalid one is none.
func decodeField(d *json.Decoder, f reflect.Value) (err error) {
	switch {
	case !f.IsValid():
		var skipped json.RawMessage
		err = d.Decode(&skipped)
	case f.Kind() == reflect.Pointer && byField[f.Type().Elem()]:
		if f.IsNil() {
			f.Set(reflect.New(f.Type().Elem()))
		}
		var null bool
		if null, err = decodeStruct(d, f.Elem()); err == nil && null {
			f.SetZero()
		}
	default:
		err = d.Decode(f.Addr().Interface())
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errTruncated
	}
	return err
}

// field finds the field that encoding/json would.
func field(v reflect.Value, name string) (found reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "" {
			tag = f.Name
		}
		switch {
		case !f.IsExported() || f.Tag.Get("json") == "-":
		case tag == name:
			return v.Field(i)
		case strings.EqualFold(tag, name) && !found.IsValid():
			found = v.Field(i)
		}
	}
	return found
}
