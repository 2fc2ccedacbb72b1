package engine

import (
	"math/rand/v2"
	"strconv"
)

// Names for containers that are given none: a mood and a Korean dish, vessel, place or river.
var (
	moods = [...]string{
		"amber", "bold", "brave", "bright", "brisk", "calm", "clever", "cosy", "crisp", "curious", "daring", "deep", "eager", "earnest", "fair", "fond",
		"fresh", "gentle", "glad", "golden", "happy", "hardy", "hearty", "honest", "humble", "jolly", "keen", "kind", "lively", "lucid", "lucky", "mellow",
		"merry", "mild", "modest", "neat", "nimble", "noble", "patient", "placid", "plucky", "polite", "proud", "quick", "quiet", "ready", "serene",
		"sharp", "shiny", "silent", "smooth", "snug", "sober", "solid", "spry", "steady", "sunny", "swift", "tender", "tidy", "vivid", "warm", "wise", "witty",
	}
	things = [...]string{
		"baduk", "bamboo", "banchan", "bibimbap", "bukchon", "buchaechum", "celadon", "changgo", "daegu", "daenamu", "danji", "doenjang", "dokdo", "gayageum",
		"gimbap", "gimchi", "gochu", "goryeo", "gukhwa", "gwangju", "haegeum", "hahoe", "halla", "hanbok", "hangang", "hangul", "hanji", "hanok", "haenyeo",
		"incheon", "jangdok", "jangseung", "janggu", "jeju", "jindo", "jirisan", "joseon", "kkachi", "maehwa", "makgeolli", "mandu", "minhwa", "moran", "mugunghwa",
		"nakdong", "namsan", "ondol", "onggi", "pansori", "patbingsu", "pungmul", "sagwa", "samulnori", "sejong", "seorak", "silla", "sujeo", "taekkyeon",
		"tteok", "yakgwa", "yeongsan", "yunnori",
	}
)

// randomName returns a name; after some collisions it ends in a number.
func randomName(tries int) string {
	n := moods[rand.IntN(len(moods))] + "_" + things[rand.IntN(len(things))]
	if tries > 3 {
		n += strconv.Itoa(rand.IntN(1 << min(4+tries, 30)))
	}
	return n
}
