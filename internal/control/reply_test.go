package control

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// TestReplyIsJSON: replies are what json.Marshal makes of them, and are understood as json.Unmarshal does.
func TestReplyIsJSON(t *testing.T) {
	for _, r := range []reply{
		{Result: json.RawMessage(`null`)},
		{Result: json.RawMessage(`{"a":[1,"}"]}`)},
		{Result: json.RawMessage(`"\u003c"`)},
		{Event: json.RawMessage(`{"result":1}`)},
		{Error: &Error{Code: "x", Message: `{"result":2}`}},
		{Event: json.RawMessage(`1`), Result: json.RawMessage(`2`)},
		{},
	} {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := encode(r)
		if err != nil || string(got) != string(want) {
			t.Errorf("encode(%s) = %s, %v", want, got, err)
		}
		var back reply
		if err := decode(got, &back); err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("decode(%s) = %+v, %v, want %+v", got, back, err, r)
		}
	}
}

// FuzzReply: what decode takes, and is a result, is what json.Unmarshal takes.
func FuzzReply(f *testing.F) {
	for _, s := range []string{`{"result":null}`, `{"result":{"a":1}}`, `{"result":1,"error":{"code":"x"}}`, `{"event":1}`, `{"result":}`, `{"result":1}}`, `{}`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var fast, slow reply
		ferr, serr := decode(b, &fast), json.Unmarshal(b, &slow)
		if ferr != nil || !json.Valid(fast.Result) {
			return // it is refused then or later
		}
		if serr != nil || string(bytes.TrimSpace(fast.Result)) != string(slow.Result) {
			t.Errorf("decode(%q) = %s, json has %s, %v", b, fast.Result, slow.Result, serr)
		}
	})
}
