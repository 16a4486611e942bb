package images

import "testing"

func TestSurveyCounts(t *testing.T) {
	rows := map[string]*layerRow{
		"toc": {Format: "estargz"}, "toc-done": {Format: "estargz", Complete: true},
		"mapped": {Format: "gzip", Mapped: true}, "tar": {Format: "tar", Complete: true},
	}
	for _, test := range []struct {
		m    manifestRow
		want Survey
	}{
		{manifestRow{}, Survey{Images: 1, Complete: 1}},
		{manifestRow{Layers: []string{"toc", "mapped"}}, Survey{Images: 1, Lazy: 1}},
		{manifestRow{Layers: []string{"toc-done"}}, Survey{Images: 1, Lazy: 1, Complete: 1}},
		{manifestRow{Layers: []string{"toc-done", "tar"}}, Survey{Images: 1, Complete: 1}},
		{manifestRow{Layers: []string{"lost"}}, Survey{Images: 1}},
		{manifestRow{Layers: []string{"toc"}, Quarantine: &Quarantine{}}, Survey{Images: 1, Lazy: 1, Quarantined: 1}},
	} {
		var got Survey
		if got.count(&test.m, rows); got != test.want {
			t.Errorf("%v counts as %+v, want %+v", test.m.Layers, got, test.want)
		}
	}
}
