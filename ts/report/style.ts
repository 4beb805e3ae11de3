/** CSS of report.html: light and dark by the reader's system, black on white on paper. */
export const STYLE = `
:root{--bg:#fbfbfa;--fg:#1d1f21;--sub:#666b70;--line:#dcdedb;--card:#fff;--c0:#3567b0;--c1:#c4572a;--c2:#7a4fa3;--c3:#2b8a5a;--c4:#8a6d1b;--hit:#2b8a5a;--miss:#c4572a}
@media (prefers-color-scheme:dark){:root{--bg:#16181a;--fg:#e7e8e6;--sub:#9aa0a5;--line:#33373a;--card:#1e2123;--c0:#7da7e8;--c1:#ef8d63;--c2:#b894dd;--c3:#62c394;--c4:#d3b257;--hit:#62c394;--miss:#ef8d63}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 16px 64px}h1{font-size:26px;margin:0}h2{font-size:18px;margin:28px 0 8px}h3{font-size:15px;margin:12px 0 4px}
.sub{color:var(--sub);margin:4px 0}.facts{display:flex;flex-wrap:wrap;gap:10px;margin-top:14px}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px;min-width:110px}.facts b{display:block;font-size:20px}.facts span{color:var(--sub);font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:14px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px}figcaption{font-weight:600;font-size:14px}
.key{font-weight:400;color:var(--sub);font-size:12px;margin-left:10px;white-space:nowrap}.key i{display:inline-block;width:12px;height:3px;margin-right:4px;vertical-align:middle}
svg{width:100%;height:auto}.grid{stroke:var(--line)}.tick{fill:var(--sub);font-size:11px}.line{fill:none;stroke-width:2}.count{font-size:11px;fill:var(--fg)}.count.strong{fill:var(--bg)}
.line.s0{stroke:var(--c0)}.line.s1{stroke:var(--c1)}.line.s2{stroke:var(--c2)}.line.s3{stroke:var(--c3)}.line.s4{stroke:var(--c4)}
.dot.s0{fill:var(--c0)}.dot.s1{fill:var(--c1)}.dot.s2{fill:var(--c2)}.dot.s3{fill:var(--c3)}.dot.s4{fill:var(--c4)}
i.s0{background:var(--c0)}i.s1{background:var(--c1)}i.s2{background:var(--c2)}i.s3{background:var(--c3)}i.s4{background:var(--c4)}
.matrix .hit{fill:var(--hit)}.matrix .miss{fill:var(--miss)}
.scroll{max-height:420px;overflow:auto;border:1px solid var(--line);border-radius:8px}table{border-collapse:collapse;width:100%;font-size:13px;background:var(--card)}
th,td{text-align:left;padding:4px 10px;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
.bar{display:inline-block;width:90px;height:8px;background:var(--line);margin-right:8px;border-radius:4px}.bar i{display:block;height:100%;background:var(--hit);border-radius:4px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(130px,1fr));gap:10px}.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px;font-size:12px}
.card img,.card .none{display:block;width:100%;aspect-ratio:1;object-fit:cover;border-radius:4px;background:var(--line);margin-bottom:6px}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px;overflow:auto;white-space:pre-wrap}summary h2{display:inline}
@media print{.scroll{max-height:none}body{background:#fff;color:#000}}
`
