import{B as e,N as t,V as n,a as r,d as i,h as a,n as o,r as s,x as c}from"./console.js";import{t as l}from"./run_buttons.js";function u(e,t){let n=e.split(`
`),r=t.split(`
`),i=r.length+1,a=new Uint16Array((n.length+1)*i);for(let e=n.length-1;e>=0;e--)for(let t=r.length-1;t>=0;t--)a[e*i+t]=n[e]===r[t]?a[(e+1)*i+t+1]+1:Math.max(a[(e+1)*i+t],a[e*i+t+1]);let o=[],s=0,c=0;for(;s<n.length||c<r.length;)s<n.length&&c<r.length&&n[s]===r[c]?(o.push({kind:`same`,text:n[s]}),s++,c++):c>=r.length||s<n.length&&a[(s+1)*i+c]>=a[s*i+c+1]?o.push({kind:`removed`,text:n[s++]}):o.push({kind:`added`,text:r[c++]});return o}function d(e,t){let n={same:` `,added:`+`,removed:`-`};return u(e,t).map(e=>n[e.kind]+e.text).join(`
`)}var f=`def area(w, h):
    return w * h


print(area(3, 4))
`,p=`def area(width, height):
    return w * h


print(area(3, 4))
`,m=12;function h(){let[u,d]=n(f),[m,h]=n(p),[b,x]=n(),[S,C]=n(!1),[w,T]=n(),E=e(null),D=e(void 0),[O,k]=_(m,E.current?.selectionStart??0),A=O.join(`
`),j=()=>({...s(),messages:[{role:`user`,content:v(u,m,A)}]}),M=async()=>{C(!0),T(void 0),x(void 0),D.current=new AbortController;let e=performance.now();try{let n=await t(`/v1/edit/completions`,j(),D.current.signal),r=y(n.choices[0].message.content);x({region:A,edited:r,usage:n.usage,seconds:(performance.now()-e)/1e3})}catch(e){D.current.signal.aborted||T(e)}finally{C(!1)}};return c(`div`,{class:`view with-side`,children:[c(`div`,{class:`column`,children:[c(`h1`,{children:`Next edit`}),c(`p`,{class:`lead`,children:`Change the right-hand file as you would in an editor. What you have changed so far tells the model what you are about; it proposes the next edit around the cursor.`}),c(`div`,{class:`pair`,children:[c(a,{label:`File before your edits`,code:!0,value:u,set:d,rows:10}),c(a,{label:`File now`,code:!0,value:m,set:h,rows:10,area:E,send:()=>void M()})]}),c(l,{asking:{running:S,stop:()=>D.current?.abort()},run:()=>void M(),label:`Predict the next edit`,ready:!!m.trim()}),c(i,{error:w}),b&&c(g,{proposal:b,accept:()=>{if(!b?.edited)return;let e=m.split(`
`);e.splice(k,O.length,...b.edited.split(`
`)),d(m),h(e.join(`
`)),x(void 0)}}),c(r,{path:`/v1/edit/completions`,body:j()})]}),c(`aside`,{"aria-label":`Settings`,children:c(o,{})})]})}function g({proposal:e,accept:t}){let{usage:n,seconds:r,edited:i,region:a}=e,o=`${n.completion_tokens} tokens in ${n.diffusion?.passes} passes, ${r.toFixed(2)} s`;if(i===null||i===a)return c(`p`,{class:`notice`,children:[`The model would change nothing here. `,o]});let s={same:``,added:`added: `,removed:`removed: `};return c(`div`,{class:`answer`,children:[c(`div`,{class:`diff`,role:`group`,tabIndex:0,"aria-label":`The proposed edit`,children:u(a,i).map((e,t)=>c(`div`,{class:e.kind,children:[c(`span`,{class:`sr`,children:s[e.kind]}),c(`span`,{class:`gutter`,"aria-hidden":`true`,children:{same:` `,added:`+`,removed:`−`}[e.kind]}),e.text||` `]},t))}),c(`div`,{class:`actions`,children:[c(`button`,{type:`button`,class:`primary`,onClick:t,children:`Accept`}),c(`span`,{class:`hint`,children:o})]})]})}function _(e,t){let n=e.replace(/\n$/,``).split(`
`),r=e.slice(0,t).split(`
`).length-1,i=Math.max(0,r-m);return[n.slice(i,r+m+1),i]}function v(e,t,n){let r=t.replace(n,()=>`<|code_to_edit|>\n${n}\n<|/code_to_edit|>`),i=e===t?``:d(e,t);return[`<|recently_viewed_code_snippets|>
<|/recently_viewed_code_snippets|>`,`<|current_file_content|>\n${r}\n<|/current_file_content|>`,`<|edit_diff_history|>\n${i}\n<|/edit_diff_history|>`].join(`

`)}function y(e){let t=/^```[^\n]*\n([\s\S]*?)\n?```\s*$/.exec(e);return t?t[1]:e.trim()===`None`?null:e}export{h as NextEdit};