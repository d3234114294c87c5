package status

import (
	"html/template"
	"strings"
)

// The parts of the page of which there are thousands are put together here: the
// template would take ten times as long. Whatever is foreign text goes through
// markup's text.

// perCell is how many bytes are expected for a cell, in the matrix or the details.
const perCell = 160

// markup is a piece of the page.
type markup struct{ strings.Builder }

// text adds escaped text, also fit for an attribute in quotation marks.
func (m *markup) text(parts ...string) {
	for _, p := range parts {
		for i := range len(p) {
			if c := p[i]; c == '<' || c == '>' || c == '&' || c == '\'' || c == '"' || c == 0 {
				p = template.HTMLEscapeString(p)
				break
			}
		}
		m.WriteString(p)
	}
}

// element adds an element of one attribute with text in it.
func (m *markup) element(name, attribute, value string, content ...string) {
	m.open(name, attribute, value)
	m.text(content...)
	m.WriteString("</" + name + ">")
}

// open adds a start tag.
func (m *markup) open(name, attribute, value string) {
	m.WriteString("<" + name + " " + attribute + `="`)
	m.text(value)
	m.WriteString(`">`)
}

func (m *markup) html() template.HTML { return template.HTML(m.String()) }

// Markup are the cells of a row, with words in them where there are few modules.
func (r row) Markup(few bool) template.HTML {
	var m markup
	m.Grow(len(r.Cells) * perCell)
	for _, c := range r.Cells {
		switch {
		case c == nil:
			m.WriteString("<td>")
		case few:
			m.open("td", "class", c.Status)
			m.element("a", "href", c.ID.Href(), c.Status, " ", c.Version)
		default:
			m.open("td", "class", c.Status)
			m.WriteString(`<a aria-label="`)
			m.text(c.Status)
			m.WriteString(`" href="`)
			m.text(c.ID.Href())
			m.WriteString(`">` + c.Sign() + "</a>")
		}
	}
	return m.html()
}

// Markup are the details of the group's cells.
func (g *group) Markup() template.HTML {
	var m markup
	m.Grow(len(g.Cells) * perCell)
	for _, c := range g.Cells {
		m.WriteByte('\n')
		m.open("li", "id", string(c.ID))
		m.WriteString("<b>")
		m.text(c.Kernel)
		m.WriteString("</b> ")
		m.what(c.outcome)
		if len(c.Earlier) == 0 {
			continue
		}
		m.WriteString("<ul>")
		for _, o := range c.Earlier {
			m.WriteString("\n<li>earlier: ")
			m.element("span", "class", "s "+o.Status, o.Status)
			m.text(" ", o.Version, " ")
			m.what(o)
			if o.Reason != "" {
				m.WriteString(" <q>")
				m.text(o.Reason)
				m.WriteString("</q>")
			}
		}
		m.WriteString("</ul>")
	}
	return m.html()
}

// what adds the date of an outcome, and links to what there is of it.
func (m *markup) what(o *outcome) {
	switch {
	case !o.Date.IsZero():
		m.WriteString("<time>" + o.Date.Format("2006-01-02") + "</time>")
	case len(o.Packages) > 0:
		m.WriteString("date unknown")
	}
	if o.Took != "" {
		m.WriteString(" <i>")
		m.text(o.Took)
		m.WriteString("</i>")
	}
	for _, p := range o.Packages {
		if p.Href == "" {
			continue
		}
		m.WriteByte(' ')
		if len(o.Packages) == 1 {
			m.element("a", "href", p.Href, "package")
		} else {
			m.element("a", "href", p.Href, "package ", p.Text)
		}
	}
	if o.Log != "" {
		m.WriteByte(' ')
		m.element("a", "href", o.Log, "log")
	}
}
