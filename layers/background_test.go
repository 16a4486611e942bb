package layers

import (
	"context"
	"testing"
)

func TestBackground(t *testing.T) {
	if is, _ := IsBackground(t.Context()); is {
		t.Error("what nobody marked is background")
	}
	hurry := make(chan struct{})
	ctx, cancel := context.WithCancel(Background(t.Context(), hurry))
	defer cancel()
	if is, _ := IsBackground(ctx); !is {
		t.Error("the mark is lost")
	}
	close(hurry)
	if is, _ := IsBackground(ctx); is {
		t.Error("it is background though somebody is in a hurry")
	}
	if is, _ := IsBackground(Background(t.Context(), nil)); !is {
		t.Error("without a hurry it is not background")
	}
}
