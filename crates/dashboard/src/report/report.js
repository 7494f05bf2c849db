'use strict';
// Draws the charts of the report when they come into view.
(() => {
  const charts = JSON.parse(document.getElementById('charts').textContent);
  const style = getComputedStyle(document.documentElement);
  const color = name => style.getPropertyValue(name).trim();
  const colors = ['--one', '--two', '--three'].map(color);
  const short = value => value === null || value === undefined ? '–' : Number(value.toPrecision(4)).toString();
  const axis = () => ({ stroke: color('--soft'), grid: { stroke: color('--line'), width: 1 }, ticks: { stroke: color('--line') } });

  const draw = (figure, chart) => {
    const xs = [...new Set(chart.lines.flatMap(line => line.x))].sort((one, other) => one - other);
    const columns = chart.lines.map(line => {
      const known = new Map(line.x.map((x, at) => [x, line.y[at]]));
      return xs.map(x => known.has(x) ? known.get(x) : null);
    });
    const series = [{ label: 'batch' }, ...chart.lines.map((line, at) => ({
      label: line.label, stroke: colors[at % colors.length], width: 1.5, spanGaps: true, value: (_, value) => short(value),
      points: { show: xs.length < 2 },
    }))];
    const width = Math.max(280, figure.clientWidth);
    const values = (_, splits) => splits.map(short);
    new uPlot({
      width, height: 200, series, scales: { x: { time: false } }, axes: [axis(), { ...axis(), size: 62, values }],
    }, [xs, ...columns], figure);
  };

  const seen = new IntersectionObserver(entries => {
    for (const entry of entries.filter(entry => entry.isIntersecting)) {
      seen.unobserve(entry.target);
      draw(entry.target, entry.target.chart);
    }
  });
  for (const place of document.querySelectorAll('[data-charts]')) {
    for (const chart of charts[place.dataset.charts]) {
      const figure = document.createElement('figure');
      const caption = document.createElement('figcaption');
      caption.textContent = chart.title;
      caption.title = chart.meaning;
      figure.append(caption);
      figure.chart = chart;
      place.append(figure);
      seen.observe(figure);
    }
  }
})();
