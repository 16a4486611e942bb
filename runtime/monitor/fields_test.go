package monitor

import (
	"encoding"
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// fill gives everything that v holds a value.
func fill(v reflect.Value, depth int) {
	if _, text := v.Addr().Interface().(encoding.TextUnmarshaler); text || depth > 12 {
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1_700_000_000, 5).UTC()))
		}
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString("text")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(7)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1)
		fill(value, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), depth+1)
			}
		}
	}
}

// TestDecodeFields: every field of a configuration is read as encoding/json reads it.
func TestDecodeFields(t *testing.T) {
	var full Config
	fill(reflect.ValueOf(&full).Elem(), 0)
	b, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	var got, want Config
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if err := decodeFields(b, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decodeFields = %+v, %v, want %+v", got, err, want)
	}
	for i := range b {
		if err := decodeFields(b[:i], new(Config)); err == nil {
			t.Fatalf("decodeFields took the first %d of %d bytes", i, len(b))
		}
	}
	for typ := range byField {
		for i := range typ.NumField() {
			if typ.Field(i).Anonymous {
				t.Errorf("%v embeds %s", typ, typ.Field(i).Name)
			}
		}
	}
}

// FuzzDecodeFields: what both take, they understand in the same way, and decodeFields takes nothing that is not JSON.
func FuzzDecodeFields(f *testing.F) {
	var full Config
	fill(reflect.ValueOf(&full).Elem(), 0)
	b, err := json.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, s := range []string{
		`null`, `{}`, `{"Spec":null}`, `{"spec":{"LINUX":{"resources":null,"unknown":[1]}}}`, `{"Spec":{},"Spec":{"process":{"args":["a"]}},"Spec":{"process":{"cwd":"/"}}}`,
		`{"ID":"x"}{}`, `[]`, `{"Spec":3}`, `{"Spec":{"linux":[]}}`, `{"a":1,}`, `{"ID" "x"}`, `{1:2}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got, want Config
		gerr, werr := decodeFields(b, &got), json.Unmarshal(b, &want)
		if (gerr == nil) != (werr == nil) {
			t.Fatalf("decodeFields: %v, json.Unmarshal: %v", gerr, werr)
		}
		if gerr == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("decodeFields: %+v, json.Unmarshal: %+v", got, want)
		}
	})
}
